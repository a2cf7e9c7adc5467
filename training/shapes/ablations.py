# SPDX-License-Identifier: Apache-2.0
"""
The paper's ablations in small: what each idea is worth in the world of shapes, with several seeds.

    python training/shapes/ablations.py runs/shapes --variant no_lape --seed 1
    python training/shapes/ablations.py runs/shapes --all           # every variant and seed that is not there yet
    python training/shapes/ablations.py runs/shapes --table

Each run starts from the trained vision encoder in `runs/shapes/start` and goes through the recipes and data of training/shapes/train.py
on one core, with batches of half the size and fewer steps (`STEPS`). What differs is one thing:

| variant | |
|---|---|
| full | nothing: the method |
| no_lape | visual features carry no coordinate embeddings |
| hard_targets | answers are learned as the nearest bin, and neighbours of a bin do not learn with it |
| average_pooling | the packer's windows are averaged, to the same numbers of tokens |
| one_stage | all data at once, from the same start, for as many questions as the three stages have |

It is a program by itself and no option of the package: what it takes away, nobody should have to choose.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml
from trl import ModelConfig, TrlParser


REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY / "training"), str(REPOSITORY / "training/shapes")]

import measure  # noqa: E402
import sft  # noqa: E402
from start import give_rows  # noqa: E402
from train import CORES, STAGES  # noqa: E402

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTModel, LlavaSTProcessor  # noqa: E402
from llava_st_hf.packer_llava_st import LlavaSTWindowPacker  # noqa: E402
from llava_st_hf.training import LlavaSTTrainingConfig  # noqa: E402


VARIANTS = ("full", "no_lape", "hard_targets", "average_pooling", "one_stage")
SEEDS = (0, 1, 2)
# Steps of each part: where look-ups are learned (words, edges) nearly as many as the recipe has, elsewhere few. Not tried whole yet.
STEPS = {"stage1": 30, "stage2_words": 350, "stage2_deeds": 100, "stage2_edges": 600, "stage2": 250, "stage3": 150}
QUESTIONS = 100  # of each task, from the validation split
_COLUMNS = (
    ("rec", "miou"), ("reg", "exact_match"), ("tvg", "miou"), ("tr", "exact_match"), ("stvg", "mtiou"), ("stvg", "msiou"), ("svg", "msiou"),
)  # fmt: skip


# ============================================================ What is taken away


def _mean_of_windows(self: LlavaSTWindowPacker, hidden_states: torch.Tensor) -> torch.Tensor:
    """In place of `LlavaSTWindowPacker.forward`, with its shapes."""
    videos, frames, rows, columns, hidden = hidden_states.shape
    t, h, w = self.window
    windows = hidden_states.view(videos, frames // t, t, rows // h, h, columns // w, w, hidden)
    return windows.mean((2, 4, 6))


def change(variant: str) -> None:
    """Changes the classes of the model in this process."""
    if variant == "no_lape":
        LlavaSTModel._add_positions = lambda self, features, token_table: features
    elif variant == "average_pooling":
        LlavaSTWindowPacker.forward = _mean_of_windows
    elif variant == "hard_targets":
        loss = LlavaSTForConditionalGeneration._loss
        LlavaSTModel._trains = lambda self: False

        def hard(self, hidden_states, labels, shift_labels, coordinates, shift_coordinates, num_items_in_batch):
            return loss(self, hidden_states, labels, shift_labels, None, None, num_items_in_batch)

        LlavaSTForConditionalGeneration._loss = hard


# ============================================================ One run


def train(runs: Path, variant: str, seed: int, output: Path) -> Path:
    """Trains a variant in this process; returns the folder of the model."""
    change(variant)
    if variant == "one_stage":
        give_rows(runs / "start", output / "rows")
        folder = (runs / "data").resolve()
        mixture = output / "joint.yaml"
        entries = []
        for name in STAGES:
            for entry in yaml.safe_load((folder / f"{name}.yaml").read_text())["datasets"]:
                entries.append({**entry, "json_path": str(folder / entry["json_path"]), "data_folder": str(folder / "media")})
        mixture.write_text(yaml.safe_dump({"datasets": entries}))
        questions = sum(steps * _questions_per_step(_recipe(name)) for name, steps in STEPS.items())
        train_stage("stage3", output / "rows", output / "joint", mixture, round(questions / _questions_per_step(_recipe("stage3"))), seed)
        return output / "joint"
    before = runs / "start"
    for name in STAGES:
        if STAGES[name] == "stage1_rows":
            give_rows(before, output / "stage1_rows")
            before = output / "stage1_rows"
        train_stage(name, before, output / name, runs / f"data/{name}.yaml", STEPS[name], seed)
        before = output / name
    return before


def _recipe(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / f"training/recipes/shapes_{name}.yaml").read_text())


def _questions_per_step(recipe: dict) -> int:
    """At most."""
    return recipe["per_device_train_batch_size"] * recipe.get("questions_per_medium", 1)


def train_stage(name: str, start: Path, output: Path, mixture: Path, steps: int, seed: int) -> None:
    """Runs a recipe shapes_stage*.yaml for so many steps."""
    recipe = REPOSITORY / f"training/recipes/shapes_{name}.yaml"
    settings = {"mixture": mixture, "model_name_or_path": start, "output_dir": output, "max_steps": steps, "seed": seed}
    settings |= {"warmup_steps": max(1, steps // 12), "save_steps": steps, "logging_steps": max(1, steps // 10)}
    parser = TrlParser((sft.DataArguments, LlavaSTTrainingConfig, ModelConfig))
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    sft.main(*parser.parse_args_and_config(["--config", str(recipe), *words]))


def run(runs: Path, variant: str, seed: int) -> None:
    """Trains and measures a variant, and writes its figures."""
    output = runs / "ablations" / f"{variant}-{seed}"
    output.mkdir(parents=True, exist_ok=True)
    folder = train(runs, variant, seed, output)
    model = LlavaSTForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaSTProcessor.from_pretrained(folder)
    figures = measure.measure(model, processor, runs / "validation", output / "measured", variant, 25, QUESTIONS)
    (output / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


def run_apart(runs: Path, variant: str, seed: int) -> None:
    """The same in a process of its own: what one takes away, another must have."""
    command = [sys.executable, __file__, str(runs), "--variant", variant, "--seed", str(seed)]
    output = runs / "ablations" / f"{variant}-{seed}"
    output.mkdir(parents=True, exist_ok=True)
    with (output / "output.log").open("w") as log:
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT)


# ============================================================ The table


def print_table(runs: Path) -> None:
    """Mean and standard deviation over seeds of each figure, as fractions."""
    print("| variant | seeds | " + " | ".join(f"{task} {key}" for task, key in _COLUMNS) + " |\n|---|---|" + "---|" * len(_COLUMNS))
    for variant in VARIANTS:
        found = [json.loads(path.read_text()) for path in sorted((runs / "ablations").glob(f"{variant}-*/figures.json"))]
        cells = []
        for task, key in _COLUMNS:
            values = np.array([figures[task][key] for figures in found]) / (100 if key == "exact_match" else 1)
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else float('nan'):.3f}" if len(values) else "")
        print(f"| {variant} | {len(found)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The paper's ablations in small.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    for needed in ("start", "data", "validation"):  # said here: what a run of its own says stands in its log
        if (arguments.variant or arguments.all) and not (arguments.runs / needed).is_dir():
            parser.error(f"{arguments.runs / needed} is missing: python training/shapes/train.py {arguments.runs} makes it.")
    if arguments.variant:
        run(arguments.runs, arguments.variant, arguments.seed)
    elif arguments.all:
        missing = [
            (variant, seed)
            for seed in SEEDS
            for variant in VARIANTS
            if not (arguments.runs / "ablations" / f"{variant}-{seed}/figures.json").is_file()
        ]
        with ThreadPoolExecutor(CORES) as pool:  # one core each: so small a model gains little from a second
            list(pool.map(lambda one: run_apart(arguments.runs, *one), missing))
    if arguments.table or arguments.all:
        print_table(arguments.runs)
