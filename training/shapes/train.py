# SPDX-License-Identifier: Apache-2.0
"""
Makes a small model of shapes from nothing: world, vision encoder, three stages.

    python training/shapes/train.py runs/shapes --output runs/shapes/export

Everything goes through what users have: the three stages are `training/sft.py` with the recipes shapes_stage*.yaml. A run that was
interrupted goes on where it was when the same command is given again. docs/shapes.md tells of the world.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from initialization import init_coordinate_embeddings
from safetensors.torch import load_file, save_file
from vision_pretraining import NUM_FRAMES

import llava_st_hf
from llava_st_hf.shapes.files import write_questions, write_training_data


REPOSITORY = Path(__file__).resolve().parents[2]
NUM_VIDEOS, NUM_IMAGES, NUM_EASY_VIDEOS, NUM_EASY_IMAGES = 9000, 8000, 2000, 5000
VISION_STEPS = 2000
# Two processes of one core each are nearly twice as fast as one process of two: so small a model is mostly small operations. Recipes count
# on two, also where there are more cores.
PROCESSES, CORES = 2, len(os.sched_getaffinity(0))
QUESTIONS_PER_TASK = {"validation": 100, "test": 500}


def once(folder: Path, name: str, work) -> None:
    """Does a part of the work, unless an earlier run has; notes how long it took in `folder/times.json`."""
    noted = folder / "times.json"
    times = json.loads(noted.read_text()) if noted.is_file() else {}
    if name in times:
        return
    start = time.monotonic()
    work()
    times[name] = round(time.monotonic() - start)
    noted.write_text(json.dumps(times, indent=1))
    print(f"{name}: {times[name]} seconds", flush=True)


def write_data(folder: Path) -> None:
    write_training_data(folder / "data", NUM_VIDEOS, NUM_IMAGES, NUM_EASY_VIDEOS, NUM_EASY_IMAGES, NUM_FRAMES)


def train_start(folder: Path) -> None:
    script = REPOSITORY / "training/shapes/start.py"
    subprocess.run([sys.executable, script, folder / "data", folder / "start", "--steps", str(VISION_STEPS)], check=True)


# Whether this CPU multiplies matrices of bfloat16 in hardware (AMX).
HAS_AMX_BF16 = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
# Name of a stage or part of one, and of its recipe → what it starts from.
STAGES = {
    "stage1": "start",
    "stage2_words": "stage1_rows",
    "stage2_edges": "stage2_words",
    "stage2": "stage2_edges",
    "stage3": "stage2",
    "stage3_naming": "stage3",
}


def train_stage(folder: Path, name: str) -> None:
    """Runs a recipe as one would by hand."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES),
        REPOSITORY / "training/sft.py",
        "--config", REPOSITORY / f"training/recipes/shapes_{name}.yaml",
        "--mixture", folder / f"data/{name}.yaml",
        "--model_name_or_path", folder / STAGES[name],
        "--output_dir", folder / name,
        "--bf16", HAS_AMX_BF16,  # a fifth faster with these units, and slower without
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, CORES // PROCESSES))}
    subprocess.run(list(map(str, command)), check=True, env=environment)


def export(trained: Path, output: Path) -> None:
    """Writes the model with weights in half the bytes, to be read as float32, which processors are fast at."""
    model = llava_st_hf.LlavaSTForConditionalGeneration.from_pretrained(trained, dtype=torch.float32)
    model.save_pretrained(output)
    llava_st_hf.LlavaSTProcessor.from_pretrained(trained).save_pretrained(output)
    file = output / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors lets nobody else read it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/shapes"))
    parser.add_argument("--output", type=Path, help="also write the model in half the bytes to this folder")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    once(folder, "data", lambda: write_data(folder))
    once(folder, "start", lambda: train_start(folder))
    for name, before in STAGES.items():
        if before == "stage1_rows":
            once(folder, before, lambda: init_coordinate_embeddings(folder / "stage1", folder / "stage1_rows"))
        once(folder, name, lambda name=name: train_stage(folder, name))
    for split, per_task in QUESTIONS_PER_TASK.items():
        once(folder, split, lambda split=split, per_task=per_task: write_questions(folder / split, split, per_task, NUM_FRAMES))
    if arguments.output is not None:
        export(folder / "stage3_naming", arguments.output)
