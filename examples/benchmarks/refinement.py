# SPDX-License-Identifier: Apache-2.0
"""Measures what refinement by a detector adds to the boxes of answers, on the test split of the Shapes dataset.

    python examples/benchmarks/refinement.py

The demo model answers questions of the task "stvg" (when and where does the event happen?). Its boxes, those of the detector of the Shapes
dataset (`llava_st_hf.shapes.detector`) and those of refinement are compared with the boxes of the scene in every frame of the video file:

- `answer`: boxes of the answer, interpolated between the frames that the model was shown;
- `detector alone`: detections in the span of the answer, linked without the boxes of the answer;
- `refined`: detections that agree with the boxes of the answer; boxes of the answer where nothing was detected.

Spans are those of the answer in all three. Printed are the mean vIoU, sIoU (IoU of the boxes in frames of both spans) and the percentage
of answers with a vIoU of at least 0.5, in percent, with 95 % bootstrap intervals; the differences from `answer`, whose intervals are those
of the paired differences; the frames in which nothing was detected; and the seconds per clip of the answer and of the refinement.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import pipeline

from llava_st_hf import Grounding
from llava_st_hf.evaluation.metrics import Tubelets, bootstrap_interval, spatial_iou, tubelet_iou
from llava_st_hf.refinement import Linking, refine_answer
from llava_st_hf.shapes.detector import ShapeDetector
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.questions import video_rows
from llava_st_hf.shapes.scenes import Scene, make_scene, scene_seed


METRICS = ("vIoU", "sIoU", "vIoU ≥ 0.5")
WAYS = ("answer", "detector alone", "refined")


def questions(split: str, count: int, num_frames: int) -> Iterator[tuple[Scene, dict, dict[int, tuple]]]:
    """Yields a scene, its first question of the task "stvg", and `{frame: box}` of the event it asks for, of `count` scenes."""
    number = found = 0
    while found < count:
        seed = scene_seed(split, number)
        scene = make_scene(seed, is_video=True)
        rows = [row for row in video_rows(scene, "", np.random.default_rng([seed, 3]), num_frames) if row["task"] == "stvg"]
        number += 1
        if not rows:
            continue
        event = next(event for event in scene.events if [event.start, event.end] == list(rows[0]["span"]))
        boxes = {
            frame: box
            for frame in range(scene.num_frames)
            if event.start <= frame / scene.fps <= event.end and (box := scene.box(event.thing, frame / scene.fps)) is not None
        }
        found += 1
        yield scene, rows[0], boxes


def boxes_of(answer: Grounding) -> dict[int, Sequence[float]]:
    """`{frame: box}` of the first event in every frame of its span."""
    if not answer.events:
        return {}
    return {frame: box.xyxy for frame, box in answer.boxes_per_frame(answer.events[0]).items()}


def without_boxes(answer: Grounding) -> Grounding:
    return replace(answer, events=tuple(replace(event, boxes=()) for event in answer.events))


def with_interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes, with one question each")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    for name, default in vars(Linking()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, nargs="+", default=[default])
    args = parser.parse_args()
    settings = [Linking(agreement, motion, least) for agreement in args.agreement for motion in args.motion for least in args.min_agreement]

    grounder = pipeline("video-grounding")
    truth, tubelets = Tubelets(), {way: Tubelets() for way in (*WAYS[:2], *settings)}
    seconds, frames, missing = {"answer": 0.0, "refined": 0.0}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        video = str(Path(folder) / "clip.mp4")
        for scene, row, boxes in questions(args.split, args.scenes, grounder.processor.video_processor.num_frames):
            write_video(scene, video)
            start = time.perf_counter()
            answer = Grounding.from_dict(grounder(video, task="stvg", text=row["text"], grammar="auto"))
            seconds["answer"] += time.perf_counter() - start
            truth.append(boxes)
            tubelets["answer"].append(boxes_of(answer))
            tubelets["detector alone"].append(boxes_of(refine_answer(without_boxes(answer), video, ShapeDetector(linking=settings[0]))))
            for number, setting in enumerate(settings):
                start = time.perf_counter()
                refined = refine_answer(answer, video, ShapeDetector(linking=setting))
                tubelets[setting].append(boxes_of(refined))
                if number == 0:
                    seconds["refined"] += time.perf_counter() - start
                    of_event = [box for event in refined.events for box in event.boxes]
                    frames, missing = frames + len(of_event), missing + sum(box.score is None for box in of_event)

    values = {}
    for way, found in tubelets.items():
        viou = tubelet_iou(found, truth)
        values[way] = np.stack([viou, spatial_iou(found, truth), viou >= 0.5], axis=1)  # (num_questions, num_metrics)
    print(f"{args.split} split, {len(truth)} questions; mean in percent [95 % interval]\n")
    print(f"| boxes | {' | '.join(METRICS)} |\n|---|{'---|' * len(METRICS)}")
    for way, found in values.items():
        name = way if isinstance(way, str) else "refined" if len(settings) == 1 else f"refined, {way}"
        print(f"| {name} | {' | '.join(with_interval(found[:, column]) for column in range(len(METRICS)))} |")
        if way != "answer":
            gain = found - values["answer"]
            print(f"| {name} − answer | {' | '.join(with_interval(gain[:, column]) for column in range(len(METRICS)))} |")
    print(f"\nframes in which nothing was detected: {missing} of {frames}")
    print(f"seconds per clip: answer {seconds['answer'] / len(truth):.2f}, refinement {seconds['refined'] / len(truth):.2f}")


if __name__ == "__main__":
    main()
