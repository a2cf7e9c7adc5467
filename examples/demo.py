# SPDX-License-Identifier: Apache-2.0
"""Localizes an event in a video: prints the answer, and writes it as JSON, as an annotated video, as a contact sheet and as an animation.

    make demo                                            # a synthetic clip and the demo model that is part of the package
    make demo MODEL=path/or/hub-id VIDEO=clip.mp4 TEXT="The person takes a laptop from the shelf."

or, without make:

    python examples/demo.py --model path/or/hub-id --video clip.mp4 --text "The person takes a laptop from the shelf."
"""

import argparse
import json
from pathlib import Path

from transformers import pipeline
from transformers.utils import logging

from llava_st_hf import Box, Event, Grounding, draw
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.questions import happening
from llava_st_hf.shapes.scenes import make_scene, scene_seed
from llava_st_hf.visualization import ANSWER_COLOUR, TRUTH_COLOUR


SAMPLE, EVENT = 9, 1  # a clip of the test split of the Shapes dataset, and the index of the event to find
SCALE = 4  # its frames are small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; by default the demo model of the package")
    parser.add_argument("--video", help="path; by default a synthetic clip")
    parser.add_argument("--text", help="sentence that describes the event to localize; required with --video")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the output files")
    args = parser.parse_args()
    if args.video and not args.text:
        parser.error("--video needs --text, the sentence that describes the event to localize.")
    logging.disable_progress_bar()
    args.output.mkdir(parents=True, exist_ok=True)

    scene = make_scene(scene_seed("test", SAMPLE), is_video=True)
    event = scene.events[EVENT]
    video, text = args.video or str(args.output / "sample.mp4"), args.text or happening(scene, event)
    if not args.video:
        write_video(scene, video)

    question = {"task": "stvg", "text": text}
    answer = pipeline("video-grounding", model=args.model)(video, **question)
    print(f"question: {json.dumps(question)}")
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    (args.output / "answer.json").write_text(json.dumps({"question": question, **answer}, indent=2, ensure_ascii=False), encoding="utf-8")

    answers, names, colours = [Grounding.from_dict(answer)], ["answer"], [ANSWER_COLOUR]
    if not args.video and not args.text:
        times = {frame: frame / scene.fps for frame in range(scene.num_frames) if event.start <= frame / scene.fps <= event.end}
        boxes = [(scene.box(event.thing, time), time, frame) for frame, time in times.items()]
        truth = Event(text, event.start, event.end, tuple(Box(*box, time=time, frame=frame) for box, time, frame in boxes if box))
        answers.insert(0, Grounding(events=(truth,), media=answers[0].media, query=text))
        names, colours = ["ground truth", "answer"], [TRUTH_COLOUR, ANSWER_COLOUR]
    for name in ("annotated.mp4", "demo.png", "demo.webp"):
        scale = None if args.video or name == "demo.png" else SCALE
        draw(video, answers, args.output / name, names=names, colours=colours, scale=scale)
    print(f"Wrote to {args.output}: answer.json, annotated.mp4, demo.png, demo.webp (answer in orange, ground truth in blue).")


if __name__ == "__main__":
    main()
