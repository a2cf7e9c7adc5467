# SPDX-License-Identifier: Apache-2.0
"""Localizes an event in a video: prints the answer, and writes it as JSON, as an annotated video, and as an image.

    make demo                                            # a synthetic clip and the demo model that is part of the package
    make demo MODEL=path/or/hub-id VIDEO=clip.mp4 TEXT="The person takes a laptop from the shelf."

or, without make:

    python examples/demo.py --model path/or/hub-id --video clip.mp4 --text "The person takes a laptop from the shelf."
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

import llava_st_hf  # noqa: F401  (registers pipeline("video-grounding"))
from llava_st_hf.model.video_reading_llava_st import read_video_metadata
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.questions import happening
from llava_st_hf.shapes.scenes import make_scene, scene_seed
from llava_st_hf.visualization import (
    ANSWER_COLOUR,
    TRUTH_COLOUR,
    add_caption,
    draw_boxes,
    draw_timeline,
    one_above_another,
    side_by_side,
)


SAMPLE, EVENT = 9, 1  # a clip of the test split of the Shapes dataset, and the index of the event to find
STRIP, HEIGHT = 6, 160  # number of frames in the image, and their height in pixels


# ============================================================ Drawing


def box_at(boxes: list[dict], time: float) -> list[float] | None:
    """Returns `[x1, y1, x2, y2]` in pixels at a time in seconds, interpolated between the boxes of an answer; None outside them."""
    times = [item["time"] for item in boxes]
    if not times or not times[0] <= time <= times[-1]:
        return None
    return [float(np.interp(time, times, [item["box"][side] for item in boxes])) for side in ("xmin", "ymin", "xmax", "ymax")]


def annotate(video: str, output: Path, events: list[dict], ground_truth) -> tuple[list[Image.Image], float]:
    """
    Writes the video with boxes drawn on it.

    Args:
        video: path of the video to read.
        output: path of the video to write.
        events: `events` of the pipeline's answer.
        ground_truth: function of a time in seconds; returns the ground-truth box or None.

    Returns:
        `(images, duration)`: STRIP annotated frames with their times, and the duration in seconds.
    """
    wanted = set(np.linspace(0, read_video_metadata(video).total_num_frames - 1, STRIP).round().astype(int).tolist())
    images, time = [], 0.0
    with av.open(video) as source, av.open(str(output), "w") as target:
        stream = source.streams.video[0]
        drawn = target.add_stream("libx264", rate=stream.average_rate, options={"crf": "16"})
        first = None
        for number, frame in enumerate(source.decode(stream)):
            first = frame.time if first is None else first
            time = frame.time - first
            image = frame.to_image()
            zoom = max(1, round(480 / image.height))  # enlarges small clips
            boxes = [(ground_truth(time), TRUTH_COLOUR), *((box_at(event["boxes"], time), ANSWER_COLOUR) for event in events)]
            image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
            image = draw_boxes(image, [([side * zoom for side in box], colour, None) for box, colour in boxes if box])
            if number == 0:
                drawn.width, drawn.height, drawn.pix_fmt = image.width // 2 * 2, image.height // 2 * 2, "yuv420p"
            target.mux(drawn.encode(av.VideoFrame.from_image(image)))
            if number in wanted:
                small = image.resize((image.width * HEIGHT // image.height, HEIGHT), Image.Resampling.LANCZOS)
                images.append(add_caption(small, f"{time:.1f} s"))
        target.mux(drawn.encode())
    return images, time


# ============================================================ Demo


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

    video, text, spans, known = args.video, args.text, [], False
    if not video:
        video = str(args.output / "sample.mp4")
        scene = make_scene(scene_seed("test", SAMPLE), is_video=True)
        event = scene.events[EVENT]
        write_video(scene, video)
        if not text:
            known, text = True, happening(scene, event)
            spans.append(((event.start / scene.duration, event.end / scene.duration), TRUTH_COLOUR, "ground truth"))

    def ground_truth(time: float) -> tuple[float, ...] | None:
        return scene.box(event.thing, time) if known and event.start <= time <= event.end else None

    grounder = pipeline("video-grounding", model=args.model)
    question = {"task": "stvg", "text": text}
    answer = grounder(video, **question)
    print(f"question: {json.dumps(question)}")
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    (args.output / "answer.json").write_text(json.dumps({"question": question, **answer}, indent=2, ensure_ascii=False), encoding="utf-8")

    images, duration = annotate(video, args.output / "annotated.mp4", answer["events"], ground_truth)
    for event_found in answer["events"]:
        if event_found["start"] is not None and event_found["end"] is not None and duration:
            spans.append(((event_found["start"] / duration, event_found["end"] / duration), ANSWER_COLOUR, "answer"))
    strip = side_by_side(images)
    rows = [add_caption(strip, text), *([draw_timeline(strip.width, spans)] if spans else [])]
    one_above_another(rows).save(args.output / "demo.png")
    legend = "answer in orange" + (", ground truth in blue" if known else "")
    print(f"Wrote to {args.output}: answer.json, annotated.mp4, demo.png ({legend}).")


if __name__ == "__main__":
    main()
