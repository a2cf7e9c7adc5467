# SPDX-License-Identifier: Apache-2.0
"""
Fine-tunes the demo model for 60 frames: its answers then have up to 60 boxes, as long as those of the published weights.

    python training/shapes/sixty_frames.py runs/sixty       # writes the model to runs/sixty/model

The demo model samples 20 frames, and events of its dataset fill at most half of a clip. Here the scenes of the Shapes dataset are slowed
down, so that an event lasts at least 60 frames, and the clip is cut around the event, which fills 70 to 100 % of it. The model serves
to measure generation of long answers (examples/benchmarks/generation.py). To resume an interrupted run, run the same command again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.shapes.files import encode_video
from llava_st_hf.shapes.slow_events import event_clip


NUM_FRAMES = 60
FRACTION = (0.7, 1.0)  # of the clip that the event fills
TASKS = ("stvg", "svg")
_RECIPE = "finetune_bundled"


def write_data(folder: Path, count: int) -> None:
    """Writes `count` clips of the training split to `folder/media`, and two questions about each to `folder/train.jsonl`."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    number = 0
    while len(rows) < count * len(TASKS):
        clip, name = event_clip("train", number, NUM_FRAMES, fraction=FRACTION), f"{number:06d}.mp4"
        number += 1
        if clip is None:
            continue
        if not (folder / "media" / name).is_file():
            part = folder / "media" / f"part-{name}"
            encode_video(clip.frames(), clip.scene.fps, part)
            part.replace(folder / "media" / name)  # an interrupted run leaves no incomplete file under this name
        seen = {"span": list(clip.span), "boxes": clip.boxes(NUM_FRAMES)}
        rows += [{"video": name, "task": task, "text": clip.text(task), **seen} for task in TASKS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    entry = "{json_path: train.jsonl, data_folder: media, format: jsonl, source: shapes_slow}"
    (folder / "train.yaml").write_text(f"datasets:\n  - {entry}\n", encoding="utf-8")


def write_initial_model(folder: Path) -> None:
    """Writes the demo model with a processor that samples 60 frames."""
    LlavaSTForConditionalGeneration.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).save_pretrained(folder)
    processor = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH)
    processor.video_processor.num_frames = NUM_FRAMES
    processor.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of data, run and model")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if not (args.folder / "data/train.yaml").is_file():
        write_data(args.folder / "data", args.clips)
    if not (args.folder / "start/config.json").is_file():
        write_initial_model(args.folder / "start")
    command = [
        sys.executable, "-m", "llava_st_cli.main", "train", _RECIPE,
        "--mixture", args.folder / "data/train.yaml",
        "--model_name_or_path", args.folder / "start",
        "--output_dir", args.folder / "model",
        "--max_steps", args.steps,
        "--max_conversations_per_sequence", len(TASKS),
        "--per_device_train_batch_size", 2,
        "--muon", "true",
        "--learning_rate", 1e-3,
        "--lr_scheduler_type", "linear",
        "--bf16", bool(torch.cpu.get_capabilities().get("amx_bf16", False)),  # faster on CPUs with AMX, slower on others
        "--disable_tqdm", "true",
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    main()
