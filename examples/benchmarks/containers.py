# SPDX-License-Identifier: Apache-2.0
"""Measures the temporal grounding accuracy of the demo model on the same scenes encoded in different kinds of video file.

    python examples/benchmarks/containers.py                  # 60 scenes; more with --scenes

Needs `av` with libx264 and libx265. It encodes scenes of the test split of the Shapes dataset in each kind of file, asks the same
question of task `tvg` about each, and prints for each kind the mean temporal IoU of answers and ground truth, its difference to plain
MP4, the number of answers equal to those about plain MP4, and the numbers of answers with notes and of files that could not be read. The
latter count as 0. Answers may differ slightly between codecs, because the decoded pixels do.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from transformers import pipeline

import llava_st_hf  # noqa: F401  (registers the pipeline)
from llava_st_hf.evaluation.metrics import temporal_iou
from llava_st_hf.model.media_files_llava_st import MEDIA_ERRORS
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.questions import video_rows
from llava_st_hf.shapes.scenes import Painter, Scene, make_scene, scene_seed


FIRST = 9000  # number of the first scene
FRAMES = 20  # sampled by the demo model
GOP_FRAMES = 12
BATCH_SIZE = 20


@dataclass(frozen=True)
class Kind:
    """
    A kind of file.

    Args:
        suffix: file name suffix, which selects the container.
        codec: ffmpeg's name of the encoder.
        options: options of the encoder.
        lead: frames before the scene that an edit list hides, as in files written by `ffmpeg -ss T -c copy`.
    """

    suffix: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    lead: int = 0


X264 = {"crf": "20", "preset": "veryfast", "g": str(GOP_FRAMES), "bf": "3", "sc_threshold": "0"}
X265_GROUPS = f"keyint={GOP_FRAMES}:min-keyint={GOP_FRAMES}:scenecut=0:open-gop=1:log-level=none"
X265 = {"crf": "20", "preset": "veryfast", "x265-params": X265_GROUPS}
MPEG = {"b": "4000000", "g": str(GOP_FRAMES), "bf": "2", "strict": "unofficial"}  # any frame rate
PLAIN = "H.264 in MP4"
KINDS = {
    "H.264, open GOP, in MP4": Kind(".mp4", "libx264", {**X264, "x264-params": "open-gop=1"}),
    "H.264, trimmed, in MP4 with an edit list": Kind(".mp4", "libx264", {**X264, "g": "250"}, lead=10),
    "H.264, B-frames, in MKV": Kind(".mkv", "libx264", X264),
    "H.264, B-frames, in AVI": Kind(".avi", "libx264", X264),
    "H.264, B-frames, in MPEG-TS": Kind(".ts", "libx264", X264),
    "HEVC, open GOP, in MKV": Kind(".mkv", "libx265", X265),
    "MPEG-4, B-frames, in MP4": Kind(".mp4", "mpeg4", MPEG),
    "MPEG-4, B-frames, in AVI": Kind(".avi", "mpeg4", MPEG),
    "MPEG-2, B-frames, in MPEG-PS": Kind(".mpg", "mpeg2video", MPEG),
    "MPEG-2, B-frames, in MPEG-TS": Kind(".ts", "mpeg2video", MPEG),
}


def write_scene(scene: Scene, path: Path, kind: Kind) -> None:
    """Encodes a scene as a file of this kind."""
    painter = Painter(scene)
    lead = range(scene.num_frames - kind.lead, scene.num_frames)  # frames that would change the answer if they were counted
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=scene.fps, options=kind.options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, scene.fps)
        packets = []
        for time, number in enumerate([*lead, *range(scene.num_frames)]):
            frame = av.VideoFrame.from_ndarray(painter.frame(number), format="rgb24")
            frame.pts, frame.time_base = time, stream.codec_context.time_base
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            packet.pts -= kind.lead  # in frames; muxers with edit lists hide frames before 0
            packet.dts -= kind.lead
            container.mux(packet)


def question_about(scene: Scene, number: int) -> dict:
    """A row of the task tvg: `text`, and `span` in seconds."""
    rows = [row for row in video_rows(scene, "", np.random.default_rng(number), FRAMES) if row["task"] == "tvg"]
    return rows[number % len(rows)]


def ask(grounder, paths: list[Path], questions: list[dict], **options) -> list[dict | None]:
    """Returns the answers; None for a file that cannot be read."""
    inputs = [{"video": path, "task": "tvg", "text": row["text"]} for path, row in zip(paths, questions, strict=True)]
    answers: list[dict | None] = []
    for start in range(0, len(inputs), BATCH_SIZE):
        batch = inputs[start : start + BATCH_SIZE]
        try:
            answers += grounder(batch, batch_size=BATCH_SIZE, **options)
        except MEDIA_ERRORS:
            answers += [_ask_alone(grounder, one, **options) for one in batch]
    return answers


def _ask_alone(grounder, one: dict, **options) -> dict | None:
    try:
        return grounder(one, **options)
    except MEDIA_ERRORS as error:
        print(f"error: {error}")
        return None


def span_of(answer: dict | None) -> tuple[float, float]:
    """Seconds of the answer's first event; NaN where it has none."""
    event = answer["events"][0] if answer is not None and answer["events"] else {"start": None, "end": None}
    return tuple(float("nan") if event[name] is None else event[name] for name in ("start", "end"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--video-backend", help="pyav, the default, or decord")
    args = parser.parse_args()
    grounder = pipeline("video-grounding")
    numbers = range(FIRST, FIRST + args.scenes)
    scenes = [make_scene(scene_seed("test", number), True) for number in numbers]
    questions = [question_about(scene, number) for scene, number in zip(scenes, numbers, strict=True)]
    truths = np.array([row["span"] for row in questions])  # (scenes, 2) seconds
    writers: dict[str, tuple[str, Callable[[Scene, Path], None]]] = {PLAIN: (".mp4", write_video)}
    writers |= {name: (kind.suffix, partial(write_scene, kind=kind)) for name, kind in KINDS.items()}
    print("| file | mean tIoU | difference | same answer | with notes | errors | seconds |")
    print("|---|---|---|---|---|---|---|")
    plain: tuple[float, np.ndarray] | None = None
    for name, (suffix, write) in writers.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{number}{suffix}") for number in numbers]
            for scene, path in zip(scenes, paths, strict=True):
                write(scene, path)
            start = time.monotonic()
            answers = ask(grounder, paths, questions, video_backend=args.video_backend)
            seconds = time.monotonic() - start
        spans = np.array([span_of(answer) for answer in answers], dtype=float)  # (scenes, 2) seconds
        mean = float(np.nan_to_num(temporal_iou(spans, truths)).mean())
        if plain is None:
            plain = mean, spans
        same = int((np.abs(spans - plain[1]) < 0.01).all(axis=1).sum())
        noted = sum(bool(answer["notes"]) for answer in answers if answer is not None)
        errors = sum(answer is None for answer in answers)
        figures = [f"{mean:.3f}", f"{mean - plain[0]:+.3f}", f"{same} of {len(spans)}", noted, errors, f"{seconds:.0f}"]
        print("|", " | ".join(map(str, [name, *figures])), "|", flush=True)


if __name__ == "__main__":
    main()
