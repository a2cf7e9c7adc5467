# SPDX-License-Identifier: Apache-2.0
"""
Trains the demo model from scratch: Shapes dataset, vision encoder, three stages.

    python training/shapes/train.py runs/shapes --output runs/shapes/export

The three stages are `training/sft.py` with the recipes shapes_stage*.yaml, as users run it. To resume an interrupted run, run the same
command again. docs/shapes.md describes dataset and model.
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
# Two processes of one core each are faster than one process of two, because the steps of this model are many small operations. The batch
# sizes of the recipes are for two processes.
PROCESSES, CORES = 2, len(os.sched_getaffinity(0))
QUESTIONS_PER_TASK = {"validation": 100, "test": 500}


def once(folder: Path, name: str, work) -> None:
    """Calls `work` unless an earlier run has finished this part; writes its duration in seconds to `folder/times.json`."""
    file = folder / "times.json"
    times = json.loads(file.read_text()) if file.is_file() else {}
    if name in times:
        return
    start = time.monotonic()
    work()
    times[name] = round(time.monotonic() - start)
    file.write_text(json.dumps(times, indent=1))
    print(f"{name}: {times[name]} seconds", flush=True)


def write_data(folder: Path) -> None:
    """Writes the training split and a mixture for each recipe."""
    write_training_data(folder / "data", NUM_VIDEOS, NUM_IMAGES, NUM_EASY_VIDEOS, NUM_EASY_IMAGES, NUM_FRAMES)


def train_start(folder: Path) -> None:
    """Writes the model that stage 1 starts from."""
    script = REPOSITORY / "training/shapes/start.py"
    subprocess.run([sys.executable, script, folder / "data", folder / "start", "--steps", str(VISION_STEPS)], check=True)


# Whether this CPU multiplies matrices of bfloat16 in hardware (AMX).
HAS_AMX_BF16 = bool(torch.cpu.get_capabilities().get("amx_bf16", False))
# Stage, or part of one, which is also the name of its recipe → folder that it starts from.
STAGES = {
    "stage1": "start",
    "stage2_words": "stage1_rows",
    "stage2_edges": "stage2_words",
    "stage2": "stage2_edges",
    "stage3": "stage2",
    "stage3_naming": "stage3",
}


def train_stage(folder: Path, name: str) -> None:
    """Runs the recipe of a stage on PROCESSES processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(PROCESSES),
        REPOSITORY / "training/sft.py",
        "--config", REPOSITORY / f"training/recipes/shapes_{name}.yaml",
        "--mixture", folder / f"data/{name}.yaml",
        "--model_name_or_path", folder / STAGES[name],
        "--output_dir", folder / name,
        "--bf16", HAS_AMX_BF16,  # faster on CPUs with AMX, slower on others
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, CORES // PROCESSES))}
    subprocess.run(list(map(str, command)), check=True, env=environment)


def export(trained: Path, output: Path) -> None:
    """Writes the model with float16 weights, which halves the file. They are loaded as float32, the fastest dtype on CPU."""
    model = llava_st_hf.LlavaSTForConditionalGeneration.from_pretrained(trained, dtype=torch.float32)
    model.save_pretrained(output)
    llava_st_hf.LlavaSTProcessor.from_pretrained(trained).save_pretrained(output)
    file = output / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes files that only their owner can read


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/shapes"), help="folder of data and runs")
    parser.add_argument("--output", type=Path, help="folder to also write the model to, with float16 weights")
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
