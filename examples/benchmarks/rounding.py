# SPDX-License-Identifier: Apache-2.0
"""Computes the upper bound of the metrics that follows from the quantization of coordinates to bins.

    python examples/benchmarks/rounding.py

It draws ground truth like that of RefCOCO (boxes in images), Charades-STA (spans of 30-second clips, 8 s on average) and spatio-temporal
benchmarks (tubelets of moving objects), answers each with the tokens nearest to the ground truth (an oracle), parses and scores the
answers, and prints the metrics by the size of boxes and spans.
"""

import argparse
import random
from collections.abc import Callable, Sequence

from llava_st_hf.data.ground_truth import boxes_at_sampled_frames
from llava_st_hf.data.samples import GroundingSample
from llava_st_hf.evaluation.answers import ANSWER_PARSERS, ParseContext
from llava_st_hf.evaluation.rows import OWN_PARSER, Box, GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS, coordinate_token, position_to_bin
from llava_st_hf.model.grounding_llava_st import MediaInfo


# Ranges of sizes; the last one covers most of the others.
SIDES = ((0.02, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.45), (0.45, 0.6), (0.05, 0.6))  # fractions of the image side
LENGTHS = ((1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 30.0), (1.0, 30.0))  # seconds
NUM_FRAMES = 100  # sampled of a clip
PICTURE = MediaInfo("image", 640, 480)
CLIP_30_S = MediaInfo("video", 640, 360, fps=30.0, last_frame=899)
CLIP_20_S = MediaInfo("video", 640, 360, fps=30.0, last_frame=599)


def token(axis: str, position: float) -> str:
    return coordinate_token(axis, position_to_bin(min(max(position, 0.0), 1.0), DEFAULT_NUM_BINS))


def box_text(box: Box, media: MediaInfo) -> str:
    x1, y1, x2, y2 = box
    (left, right), (top, bottom) = (
        [token("width", x / media.width) for x in (x1, x2)],
        [token("height", y / media.height) for y in (y1, y2)],
    )
    return f"[{left}{top}{right}{bottom}]"


def box_in(draw: random.Random, sides: tuple[float, float], media: MediaInfo) -> Box:
    """Draws a box in pixels whose sides are between two fractions of the image."""
    width, height = draw.uniform(*sides), draw.uniform(*sides)
    x, y = draw.uniform(0, 1 - width), draw.uniform(0, 1 - height)
    return x * media.width, y * media.height, (x + width) * media.width, (y + height) * media.height


def rec(draw: random.Random, sides: tuple[float, float]) -> tuple[MediaInfo, GroundingResult, str]:
    box = box_in(draw, sides, PICTURE)
    return PICTURE, GroundingResult(box=box), box_text(box, PICTURE)


def tvg(draw: random.Random, lengths: tuple[float, float]) -> tuple[MediaInfo, GroundingResult, str]:
    length = 0.0
    while not lengths[0] <= length < lengths[1]:
        length = draw.gammavariate(4.0, 2.0)  # mean 8 s
    start = draw.uniform(0, 30 - length)
    span = start / 30, (start + length) / 30
    return CLIP_30_S, GroundingResult(span=span), "{" + "".join(token("temporal", position) for position in span) + "}"


def stvg(draw: random.Random, sides: tuple[float, float]) -> tuple[MediaInfo, GroundingResult, str]:
    """Draws an object that moves for 3 to 12 seconds, with a box in every frame of the annotation."""
    last = CLIP_20_S.last_frame
    length = draw.randint(90, 360)
    first = draw.randint(0, last - length)
    begin, end = box_in(draw, sides, CLIP_20_S), box_in(draw, sides, CLIP_20_S)
    boxes = []
    for frame in range(first, first + length + 1):
        share = (frame - first) / length
        x1, y1, x2, y2 = (a + share * (b - a) for a, b in zip(begin, end, strict=True))
        boxes.append((frame / last, (x1, y1, x2, y2)))
    sample = GroundingSample("one", "video", "a.mp4", unit="fraction", boxes=tuple(boxes), num_frames=last + 1)
    tubelet, span = dict(boxes_at_sampled_frames(sample, NUM_FRAMES)), (first / last, (first + length) / last)
    moments = "".join(f"{token('temporal', frame / last)}:{box_text(box, CLIP_20_S)}" for frame, box in tubelet.items())
    times = "".join(token("temporal", position) for position in span)
    return CLIP_20_S, GroundingResult(span=span, tubelet=tubelet), f"During {{{times}}}. Object bounding box: {moments}."


def figures(task: str, sample: Callable, size: tuple[float, float], count: int) -> dict[str, float]:
    draw, rows = random.Random(f"{task} {size}"), []
    for number in range(count):
        media, truth, answer = sample(draw, size)
        said, _ = ANSWER_PARSERS[OWN_PARSER](answer, ParseContext(task, media, num_frames=NUM_FRAMES))
        rows.append(Prediction(str(number), "made up", task, "", truth, media=media.to_dict(), answer=answer, prediction=said))
    return score(task, rows)


def print_table(title: str, task: str, sample: Callable, sizes: Sequence[tuple[float, float]], names: Sequence[str], count: int) -> None:
    print(f"\n| {title} | {' | '.join(f'`{name}`' for name in names)} |\n|---|{'---:|' * len(names)}")
    for size in sizes:
        found = figures(task, sample, size, count)
        cells = [f"{found[name]:.1f}" if "@" in name else f"{found[name]:.3f}" for name in names]
        print(f"| {size[0]:g} – {size[1]:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=10_000, help="boxes, and spans, per size")
    parser.add_argument("--tubelets", type=int, default=500, help="tubelets per size")
    args = parser.parse_args()
    print_table("boxes of pictures: side, as a share", "rec", rec, SIDES, ("miou", "R1@0.5"), args.boxes)
    print_table("spans of 30 s: length in s", "tvg", tvg, LENGTHS, ("miou", "R1@0.5", "R1@0.7"), args.boxes)
    names = ("m_tiou", "m_siou", "m_viou", "viou@0.5", "viou@0.7")
    print_table("tubelets of 20 s: side, as a share", "stvg", stvg, SIDES, names, args.tubelets)


if __name__ == "__main__":
    main()
