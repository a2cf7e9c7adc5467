# SPDX-License-Identifier: Apache-2.0
"""
The paper's ablations at the scale of the demo model, on the Shapes dataset, with several seeds.

    python training/shapes/ablations.py runs/shapes --variant no_lape --seed 1
    python training/shapes/ablations.py runs/shapes --all           # every variant and seed without a result
    python training/shapes/ablations.py runs/shapes --table

Each run starts from the trained vision encoder in `runs/shapes/start` and uses the recipes and data of training/shapes/train.py on one
core, with half the batch size, for the steps of `PARTS`. Each variant changes one component:

| variant | change |
|---|---|
| full | none |
| no_lape | visual features have no coordinate embeddings |
| hard_targets | the target is the nearest bin (one-hot), without Neighbouring Token Propagation |
| average_pooling | the packer averages its windows, to the same numbers of tokens |
| one_stage | the questions of all parts, shuffled into one stage |

The variants are not options of the package: this script replaces methods of its classes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml
from trl import ModelConfig, TrlParser


REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "training/shapes"))

import measure  # noqa: E402
from initialization import init_coordinate_embeddings  # noqa: E402
from train import CORES, HAS_AMX_BF16, STAGES  # noqa: E402

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTModel, LlavaSTProcessor  # noqa: E402
from llava_st_hf.data import load_mixture, pack_by_video  # noqa: E402
from llava_st_hf.launch import sft  # noqa: E402
from llava_st_hf.model.packer_llava_st import LlavaSTWindowPacker  # noqa: E402
from llava_st_hf.training import LlavaSTTrainingConfig  # noqa: E402


VARIANTS = ("full", "no_lape", "hard_targets", "average_pooling", "one_stage")
SEEDS = (0, 1, 2)
# Steps of each recipe, in this order. Box edges and times are learned within them.
PARTS = {"stage1": 30, "stage2_words": 60, "stage2_edges": 180, "stage2": 160, "stage3": 120}
NUM_QUESTIONS = 100  # of each task, from the validation split
# Metric of each task in the table. Of the three tasks with tubelets only SVG: they take longest to evaluate, and are learned last.
METRICS = {
    "rec": "miou",
    "reg": "exact_match",
    "dgc": "object_recall@0.5",
    "tvg": "miou",
    "tr": "exact_match",
    "svg": "m_siou",
}


# ============================================================ Variants


def _mean_of_windows(self: LlavaSTWindowPacker, hidden_states: torch.Tensor) -> torch.Tensor:
    """Averages windows; replaces `LlavaSTWindowPacker.forward`.

    Args:
        hidden_states: (videos, frames, rows, columns, hidden).

    Returns:
        (videos, frames / t, rows / h, columns / w, hidden) for windows of t × h × w.
    """
    videos, frames, rows, columns, hidden = hidden_states.shape
    t, h, w = self.window
    windows = hidden_states.view(videos, frames // t, t, rows // h, h, columns // w, w, hidden)
    return windows.mean((2, 4, 6))


def change(variant: str) -> None:
    """Replaces methods of the model's classes, for the rest of this process."""
    if variant == "no_lape":
        LlavaSTModel._add_positions = lambda self, features, *args: features
    elif variant == "average_pooling":
        LlavaSTWindowPacker.forward = _mean_of_windows
    elif variant == "hard_targets":
        loss = LlavaSTForConditionalGeneration._loss
        LlavaSTModel._trains = lambda self: False

        def hard(self, hidden_states, labels, shift_labels, coordinate_values, shift_coordinate_values, num_items_in_batch):
            return loss(self, hidden_states, labels, shift_labels, None, None, num_items_in_batch)

        LlavaSTForConditionalGeneration._loss = hard


# ============================================================ One run


def train(runs: Path, variant: str, seed: int, output: Path) -> Path:
    """Trains a variant in this process, from the data and start model of `runs`; returns the folder of the trained model."""
    change(variant)
    if variant == "one_stage":
        init_coordinate_embeddings(runs / "start", output / "rows")
        steps = write_joint_mixture(runs / "data", output / "joint.yaml")
        train_stage("stage3", output / "rows", output / "joint", output / "joint.yaml", steps, seed)
        return output / "joint"
    before = runs / "start"
    for name, steps in PARTS.items():
        if STAGES[name] == "stage1_rows":
            init_coordinate_embeddings(before, output / "stage1_rows")
            before = output / "stage1_rows"
        train_stage(name, before, output / name, runs / f"data/{name}.yaml", steps, seed)
        before = output / name
    return before


def entries_of(data: Path, name: str) -> list[dict]:
    """Returns the mixture entries of a part, each with the share of its rows that is used, in per cent, as `percent`."""
    entries = []
    for entry in yaml.safe_load((data / f"{name}.yaml").read_text())["datasets"]:
        share = entry.pop("sampling_strategy")  # all, or first:N%
        entry |= {"json_path": str((data / entry["json_path"]).resolve()), "data_folder": str((data / "media").resolve())}
        entries.append({**entry, "percent": 100.0 if share == "all" else float(share.removeprefix("first:").removesuffix("%"))})
    return entries


def write_mixture(file: Path, entries: list[dict]) -> None:
    """Writes entries of `entries_of` as a mixture."""
    lines = []
    for entry in entries:
        lines.append({**entry, "sampling_strategy": f"first:{entry['percent']:.3f}%"})
        del lines[-1]["percent"]
    file.write_text(yaml.safe_dump({"datasets": lines}), encoding="utf-8")


def write_joint_mixture(data: Path, file: Path) -> int:
    """Writes a mixture with as many questions as all of `PARTS` together; returns the number of stage-3 steps that are one epoch of it."""
    joint: dict[str, dict] = {}
    for name, steps in PARTS.items():
        entries = entries_of(data, name)
        write_mixture(file, entries)
        share = steps * _recipe(name)["per_device_train_batch_size"] / _num_groups(file, name)
        for entry in entries:
            before = joint.get(entry["json_path"], {"percent": 0})["percent"]
            joint[entry["json_path"]] = {**entry, "percent": min(before + entry["percent"] * share, 100.0)}
    write_mixture(file, list(joint.values()))
    return _num_groups(file, "stage3") // _recipe("stage3")["per_device_train_batch_size"]


def _recipe(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / f"training/recipes/shapes_{name}.yaml").read_text())


def _num_groups(mixture: Path, name: str) -> int:
    """Number of packed sequences that a recipe makes of a mixture."""
    return len(pack_by_video(load_mixture(mixture), _recipe(name).get("max_conversations_per_sequence", 1)))


def train_stage(name: str, start: Path, output: Path, mixture: Path, steps: int, seed: int) -> None:
    """Runs the recipe shapes_<name>.yaml for `steps` steps."""
    recipe = REPOSITORY / f"training/recipes/shapes_{name}.yaml"
    settings = {"mixture": mixture, "model_name_or_path": start, "output_dir": output, "max_steps": steps, "seed": seed}
    settings |= {"warmup_steps": max(1, steps // 12), "save_steps": steps, "logging_steps": max(1, steps // 10)}
    settings["bf16"] = HAS_AMX_BF16  # faster on CPUs with AMX, slower on others
    parser = TrlParser((sft.DataArguments, LlavaSTTrainingConfig, ModelConfig))
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    sft.main(*parser.parse_args_and_config(["--config", str(recipe), *words]))


def run(runs: Path, variant: str, seed: int) -> None:
    """Trains and evaluates a variant, and writes metrics.json."""
    output = runs / "ablations" / f"{variant}-{seed}"
    output.mkdir(parents=True, exist_ok=True)
    folder = train(runs, variant, seed, output)
    model = LlavaSTForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = LlavaSTProcessor.from_pretrained(folder)
    metrics = measure.measure(model, processor, runs / "validation", output / "measured", variant, 25, NUM_QUESTIONS, METRICS)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")


def run_in_subprocess(runs: Path, variant: str, seed: int) -> None:
    """Runs `run` in a process of its own, because variants change classes; its output goes to output.log."""
    command = [sys.executable, __file__, str(runs), "--variant", variant, "--seed", str(seed)]
    output = runs / "ablations" / f"{variant}-{seed}"
    output.mkdir(parents=True, exist_ok=True)
    with (output / "output.log").open("w") as log:
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT)


# ============================================================ Tables


def _over_seeds(values: Sequence[float], digits: int) -> str:
    """Formats mean and standard deviation; returns an empty string for no values."""
    if not values:
        return ""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else np.nan:.{digits}f}"


def print_table(runs: Path) -> None:
    """Prints mean and standard deviation over seeds of each metric, as fractions."""
    print("| variant | seeds | " + " | ".join(f"{task} {key}" for task, key in METRICS.items()) + " |\n|---|---|" + "---|" * len(METRICS))
    for variant in VARIANTS:
        found = [json.loads(path.read_text()) for path in sorted((runs / "ablations").glob(f"{variant}-*/metrics.json"))]
        cells = []
        for task, key in METRICS.items():
            cells.append(_over_seeds([metrics[task][key] / (100 if key in measure.PERCENT_METRICS else 1) for metrics in found], 3))
        print(f"| {variant} | {len(found)} | " + " | ".join(cells) + " |")


def print_errors(runs: Path, error: str) -> None:
    """Prints a logged bin error ("box_bin_error" or "time_bin_error") at steps of the part where box edges and times are learned: mean and
    standard deviation over seeds."""
    part = "stage2_edges"
    steps = [PARTS[part] * fifth // 5 for fifth in range(1, 6)]
    print(f"| {part}, {error} | " + " | ".join(f"step {step}" for step in steps) + " |\n|---|" + "---|" * len(steps))
    for variant in VARIANTS:
        found = []
        for path in (runs / "ablations").glob(f"{variant}-*/{part}/trainer_state.json"):
            history = json.loads(path.read_text())["log_history"]
            errors = {entry["step"]: entry[error] for entry in history if error in entry}
            found.append([errors[step] for step in steps])
        if found:
            print(f"| {variant} | " + " | ".join(_over_seeds(values, 1) for values in zip(*found, strict=True)) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of training/shapes/train.py")
    parser.add_argument("--variant", choices=VARIANTS, help="variant to train and evaluate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the data")
    parser.add_argument(
        "--all", action="store_true", help="train and evaluate every variant and seed without a result, and print the tables"
    )
    parser.add_argument("--table", action="store_true", help="print the tables of the results")
    arguments = parser.parse_args()
    for needed in ("start", "data", "validation"):  # checked here, because errors of runs in subprocesses are in their logs only
        if (arguments.variant or arguments.all) and not (arguments.runs / needed).is_dir():
            parser.error(f"{arguments.runs / needed} is missing. Create it with: python training/shapes/train.py {arguments.runs}")
    if arguments.variant:
        run(arguments.runs, arguments.variant, arguments.seed)
    elif arguments.all:
        missing = [
            (variant, seed)
            for seed in SEEDS
            for variant in VARIANTS
            if not (arguments.runs / "ablations" / f"{variant}-{seed}/metrics.json").is_file()
        ]
        with ThreadPoolExecutor(CORES) as pool:  # one core each: this model is hardly faster on two
            runs = [pool.submit(run_in_subprocess, arguments.runs, *one) for one in missing]
        for made in runs:
            made.result()  # raises the error of a run, after the others have finished
    if arguments.table or arguments.all:
        print_table(arguments.runs)
        for error in ("box_bin_error", "time_bin_error"):
            print_errors(arguments.runs, error)
