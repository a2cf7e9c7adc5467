# SPDX-License-Identifier: Apache-2.0
"""Runs the three stages of training with a tiny random model, synthetic videos and images, and the recipes tiny_stage*.yaml.

    python -m llava_st_hf.examples.three_stages runs/tiny

It takes about a minute on two CPU cores and shows all steps from annotations to an answer in seconds and pixels. The trained model is
useless.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image
from transformers import pipeline

from ..checkpoints.adapters import merge_adapter
from ..model.image_processing_llava_st import LlavaSTImageProcessor
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.video_processing_llava_st import LlavaSTVideoProcessor
from .tiny_model import build_model, build_tokenizer


COLORS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210)}
FPS, FRAMES, HEIGHT, WIDTH, SIZE = 10, 30, 96, 128, 24


# ============================================================ Data


def frame_of(color: str, left: int | None) -> np.ndarray:
    """Draws a grey texture, with a square at column `left` unless it is None; returns uint8 (height, width, 3)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frame = np.stack([110 + 30 * np.sin(rows / 9) + 20 * np.cos(columns / 11)] * 3, axis=-1).astype(np.uint8)
    if left is not None:
        frame[40 : 40 + SIZE, left : left + SIZE] = COLORS[color]
    return frame


def write_video(path: Path, color: str, first: int, last: int) -> list[dict]:
    """Writes a video of a square that is visible from frame `first` to frame `last` and moves right; returns its tubelet in seconds and
    pixels."""
    boxes = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(FRAMES):
            left = None
            if first <= number <= last:
                left = 4 + (WIDTH - SIZE - 8) * number // FRAMES
                boxes.append({"time": number / FPS, "box": [left, 40, left + SIZE, 40 + SIZE]})
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_of(color, left), format="rgb24")))
        container.mux(stream.encode())
    return boxes


def write_data(folder: Path) -> None:
    """Writes videos, images, annotations (JSONL, docs/data.md) and a mixture for each stage."""
    folder.mkdir(parents=True, exist_ok=True)
    stages: dict[int, list[dict]] = {1: [], 2: [], 3: []}
    for number in range(6):
        color = list(COLORS)[number % 3]
        first, last = 2 + 2 * number, 12 + 3 * number
        video, image, left = f"{number}.mp4", f"{number}.png", 10 * number
        boxes = write_video(folder / video, color, first, last)
        Image.fromarray(frame_of(color, left)).save(folder / image)
        what, event = f"a {color} square", f"a {color} square moves to the right"
        span, box = [first / FPS, last / FPS], [left, 40, left + SIZE, 40 + SIZE]
        question = {"role": "user", "content": "Describe the video."}
        stages[1].append({"video": video, "task": "caption", "messages": [question, {"role": "assistant", "content": f"{event}."}]})
        stages[2] += [
            {"video": video, "task": "tvg", "text": event, "span": span},
            {"video": video, "task": "tr", "text": event, "span": span},
            {"image": image, "task": "rec", "text": what, "box": box},
            {"image": image, "task": "reg", "text": what, "box": box},
            {"image": image, "task": "dgc", "objects": [{"text": what, "box": box}]},
        ]
        stages[3] += stages[2][-5:]
        stages[3] += [{"video": video, "task": task, "text": event, "span": span, "boxes": boxes} for task in ("stvg", "svg", "elc")]
    for stage, rows in stages.items():
        (folder / f"stage{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        entry = f"{{json_path: stage{stage}.jsonl, data_folder: ., format: jsonl, source: made}}"
        (folder / f"stage{stage}.yaml").write_text(f"datasets:\n  - {entry}\n")


# ============================================================ Model


def write_start(folder: Path) -> None:
    """Writes a stage-1 model, without coordinate tokens. It has 9×9 patches and 20 frames instead of 27×27 and 100."""
    tokenizer = build_tokenizer(num_bins=0)
    size = {"height": 126, "width": 126}
    processor = LlavaSTProcessor(
        image_processor=LlavaSTImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=LlavaSTVideoProcessor(size=size, num_frames=20),
    )
    build_model(tokenizer, image_size=126, use_coordinate_tokens=False).save_pretrained(folder)
    processor.save_pretrained(folder)


# ============================================================ Training


def train(stage: int, folder: Path) -> None:
    """Runs the recipe of a stage; input and output are in `folder`."""
    before = "start" if stage == 1 else f"stage{stage - 1}"
    command = [
        sys.executable, "-m", "llava_st_cli.main", "train", f"tiny_stage{stage}",
        "--mixture", folder / f"data/stage{stage}.yaml",
        "--model_name_or_path", folder / before,
        "--output_dir", folder / f"stage{stage}",
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/tiny"))
    folder = parser.parse_args().folder
    write_data(folder / "data")
    write_start(folder / "start")
    for stage in (1, 2, 3):
        train(stage, folder)
    model = merge_adapter(folder / "stage3")
    processor = LlavaSTProcessor.from_pretrained(folder / "stage3")
    grounder = pipeline("video-grounding", model=model, processor=processor)
    print(json.dumps(grounder(str(folder / "data/0.mp4"), task="tvg", text="a red square moves to the right", max_new_tokens=16)))
