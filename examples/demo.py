# SPDX-License-Identifier: Apache-2.0
"""Grounds a video: prints the answer, and leaves it as JSON, as an annotated video, and as a picture.

    make demo                                            # a clip made here, the small model that comes with the package
    make demo MODEL=path/or/hub-id VIDEO=clip.mp4 TEXT="person takes a laptop from the shelf"

or, without make:

    python examples/demo.py --model path/or/hub-id --video clip.mp4 --text "person takes a laptop from the shelf"
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


SAMPLE, EVENT = 9, 1  # a clip of the test split, which no model was trained on, and what to look for in it
STRIP, HEIGHT = 6, 160  # frames of the picture, and their height in pixels


# ============================================================ Drawing


def box_at(boxes: list[dict], time: float) -> list[float] | None:
    """`[x1, y1, x2, y2]` in pixels at a time (seconds), between two moments of an answer on the way from one to the other; None outside."""
    times = [moment["time"] for moment in boxes]
    if not times or not times[0] <= time <= times[-1]:
        return None
    return [float(np.interp(time, times, [moment["box"][side] for moment in boxes])) for side in ("xmin", "ymin", "xmax", "ymax")]


def annotate(video: str, output: Path, events: list[dict], truth) -> tuple[list[Image.Image], float]:
    """
    Writes the video with boxes drawn on it.

    Args:
        events: of the answer.
        truth: time in seconds → true box or None.

    Returns:
        `(pictures, duration)`: a few frames with their time, and seconds.
    """
    wanted = set(np.linspace(0, read_video_metadata(video).total_num_frames - 1, STRIP).round().astype(int).tolist())
    pictures, time = [], 0.0
    with av.open(video) as source, av.open(str(output), "w") as target:
        stream = source.streams.video[0]
        drawn = target.add_stream("libx264", rate=stream.average_rate, options={"crf": "16"})
        first = None
        for number, frame in enumerate(source.decode(stream)):
            first = frame.time if first is None else first
            time = frame.time - first
            image = frame.to_image()
            zoom = max(1, round(480 / image.height))  # small clips would be hard to see
            boxes = [(truth(time), TRUTH_COLOUR), *((box_at(event["boxes"], time), ANSWER_COLOUR) for event in events)]
            image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.BICUBIC)
            image = draw_boxes(image, [([side * zoom for side in box], colour, None) for box, colour in boxes if box])
            if number == 0:
                drawn.width, drawn.height, drawn.pix_fmt = image.width // 2 * 2, image.height // 2 * 2, "yuv420p"
            target.mux(drawn.encode(av.VideoFrame.from_image(image)))
            if number in wanted:
                small = image.resize((image.width * HEIGHT // image.height, HEIGHT), Image.Resampling.LANCZOS)
                pictures.append(add_caption(small, f"{time:.1f} s"))
        target.mux(drawn.encode())
    return pictures, time


# ============================================================ GroundingResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or hub id; by default the small model that comes with the package")
    parser.add_argument("--video", help="path; by default a clip made here")
    parser.add_argument("--text", help="what to find")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for what is made")
    args = parser.parse_args()
    if args.video and not args.text:
        parser.error("--text says what to find in --video.")
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
            spans.append(((event.start / scene.duration, event.end / scene.duration), TRUTH_COLOUR, "truth"))

    def truth(time: float) -> tuple[float, ...] | None:
        return scene.box(event.thing, time) if known and event.start <= time <= event.end else None

    grounder = pipeline("video-grounding", model=args.model)
    question = {"task": "stvg", "text": text}
    answer = grounder(video, **question)
    print(f"question: {json.dumps(question)}")
    print(json.dumps(answer, indent=2, ensure_ascii=False))
    (args.output / "answer.json").write_text(json.dumps({"question": question, **answer}, indent=2, ensure_ascii=False), encoding="utf-8")

    pictures, duration = annotate(video, args.output / "annotated.mp4", answer["events"], truth)
    for event_found in answer["events"]:
        if event_found["start"] is not None and event_found["end"] is not None and duration:
            spans.append(((event_found["start"] / duration, event_found["end"] / duration), ANSWER_COLOUR, "answer"))
    strip = side_by_side(pictures)
    rows = [add_caption(strip, text), *([draw_timeline(strip.width, spans)] if spans else [])]
    one_above_another(rows).save(args.output / "demo.png")
    print(f"Left in {args.output}: answer.json, annotated.mp4, demo.png (the answer in orange{', the truth in blue' if known else ''}).")


if __name__ == "__main__":
    main()
