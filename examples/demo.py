# SPDX-License-Identifier: Apache-2.0
"""Grounds a video: prints the answer, and leaves it as JSON, as a video with the boxes drawn in, and as a strip of frames.

    make demo                                            # a video made here, the small model that comes with the package
    make demo MODEL=path/or/hub-id VIDEO=clip.mp4 TEXT="person takes a laptop from the shelf"

or, without make:

    python examples/demo.py --model path/or/hub-id --video clip.mp4 --text "person takes a laptop from the shelf"
"""

import argparse
import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

import llava_st_hf  # noqa: F401  (registers pipeline("video-grounding"))
from llava_st_hf.data.shapes import Event, Scene, Thing
from llava_st_hf.data.shapes_files import write_video
from llava_st_hf.visualization import ANSWER_COLOUR, add_caption, draw_boxes, side_by_side


# ============================================================ Video

# Five seconds: a small red circle moves below two things that share a word with it.
SAMPLE = Scene(
    width=160,
    height=120,
    fps=10,
    num_frames=50,
    things=(
        Thing("square", "red", "large", 124, 32, 42),
        Thing("circle", "blue", "small", 36, 30, 25),
        Thing("circle", "red", "small", 28, 92, 25),
    ),
    events=(Event(2, "moves right", 1.2, 3.4, dx=64), Event(1, "shakes", 3.7, 4.7, dx=9, shake=0.55)),
    drift=(0.0, 0.0),
    seed=20,
)
SAMPLE_TEXT = "The red circle moves right."


# ============================================================ Drawing


def box_at(event: dict, time: float, reach: float) -> list[float] | None:
    """The box of an event at the moment nearest to `time`, if that is not further off than `reach` seconds."""
    nearest = min(event["boxes"], key=lambda moment: abs(moment["time"] - time), default=None)
    if nearest is None or abs(nearest["time"] - time) > reach:
        return None
    return [nearest["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]


def draw_answer(video: str, answer: dict, output: Path) -> None:
    """Writes `annotated.mp4`, and `strip.png` with six of its frames."""
    with av.open(video) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or Fraction(25)
        frames = [(float(frame.time), frame.to_image()) for frame in container.decode(stream)]
    zoom = max(1, 320 // frames[0][1].width)  # the boxes of a small picture need room
    times = [moment["time"] for event in answer["events"] for moment in event["boxes"]]
    reach = max(sum(abs(b - a) for a, b in pairwise(times)) / max(len(times) - 1, 1), 1 / rate) / 2 + 1e-3
    drawn = []
    for time, image in frames:
        image = image.resize((image.width * zoom // 2 * 2, image.height * zoom // 2 * 2), Image.Resampling.BICUBIC)
        boxes = [box for event in answer["events"] if (box := box_at(event, time, float(reach))) is not None]
        drawn.append(draw_boxes(image, [([side * zoom for side in box], ANSWER_COLOUR, f"{time:.1f} s") for box in boxes]))
    with av.open(str(output / "annotated.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *drawn[0].size, "yuv420p"
        for image in drawn:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    chosen = [round(place * (len(drawn) - 1) / 5) for place in range(6)]
    side_by_side([add_caption(drawn[place], f"{frames[place][0]:.1f} s") for place in chosen]).save(output / "strip.png")


# ============================================================ Grounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; by default the small model that comes with the package")
    parser.add_argument("--video", help="path; by default a video made here")
    parser.add_argument("--text", help="what to find")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for what is made")
    args = parser.parse_args()
    if args.video and not args.text:
        parser.error("--video needs --text: what to find in it.")
    logging.disable_progress_bar()
    args.output.mkdir(parents=True, exist_ok=True)
    video, text = args.video, args.text or SAMPLE_TEXT
    if not video:
        video = str(args.output / "sample.mp4")
        write_video(SAMPLE, video)

    grounder = pipeline("video-grounding", model=args.model)
    answer = grounder(video, text=text, task="stvg")
    (args.output / "answer.json").write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_answer(video, answer, args.output)

    print(f"video: {video}\nquestion: {text}")
    for event in answer["events"]:
        print(f"answer: from {event['start']} to {event['end']} seconds, with {len(event['boxes'])} boxes")
    print(f"written: {', '.join(str(args.output / name) for name in ('answer.json', 'annotated.mp4', 'strip.png'))}")


if __name__ == "__main__":
    main()
