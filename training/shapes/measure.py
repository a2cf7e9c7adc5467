# SPDX-License-Identifier: Apache-2.0
"""
Evaluates a model on a held-out split of the Shapes dataset, task by task.

    python training/shapes/measure.py runs/shapes/test --output runs/shapes/measured     # the demo model
    python training/shapes/measure.py runs/shapes/test --model runs/shapes/export --output runs/shapes/measured

If the folder of the split does not exist, 500 questions of each task of the test split are written to it; `--world 1` writes others.
Decoding is greedy. `llava-st report` makes a page of the predictions in the output folder.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from train import QUESTIONS_PER_TASK
from transformers.utils import logging
from vision_pretraining import NUM_FRAMES

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.evaluation import EvaluationSettings, read_benchmark, run_benchmark, score
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.shapes.files import write_questions


# Targets for a model trained on two CPU cores, and for one trained on one H100. Metrics of `PERCENT_METRICS` are percentages in
# scores.json, and fractions here and in the printed table.
TARGETS = {
    "rec": {"miou": (0.80, 0.87)},
    "reg": {"exact_match": (0.85, 0.95)},
    "dgc": {"object_recall@0.5": (0.75, 0.88)},
    "tvg": {"miou": (0.80, 0.90)},
    "tr": {"exact_match": (0.80, 0.92)},
    "stvg": {"m_tiou": (0.80, 0.88), "m_siou": (0.50, 0.66), "m_viou": (0.42, 0.56)},
    "svg": {"m_siou": (0.50, 0.68)},
    "elc": {"m_tiou": (0.78, 0.86), "exact_match": (0.85, 0.92)},
}
PERCENT_METRICS = ("exact_match", "object_recall@0.5")
_MAX_NEW_TOKENS = 200  # a tubelet over all 20 frames has about 150 tokens


def measure(
    model, processor, split: Path, output: Path, name: str, batch_size: int, limit: int | None, tasks: Iterable[str] = TASKS
) -> dict[str, dict[str, float]]:
    """
    Evaluates `model` and writes predictions and scores of each task to a folder in `output`.

    Args:
        model, processor: of the same checkpoint.
        split: folder with `<task>.jsonl` and `media`, as `write_questions` writes it.
        output: folder to write to.
        name: of the model, for the report.
        batch_size: questions answered together.
        limit: number of questions of each task; `None` for all.
        tasks: keys of `TASKS`.

    Returns:
        Task → metrics, as `score` returns them.
    """
    metrics = {}
    for task in tasks:
        questions = read_benchmark("jsonl", str(split / f"{task}.jsonl"), str(split / "media"))[:limit]
        settings = EvaluationSettings(f"jsonl_{task}", name, batch_size, _MAX_NEW_TOKENS)
        predictions = run_benchmark(questions, model, processor, output / task, settings, read_own_answer, num_workers=1)
        with warnings.catch_warnings():
            # Caption metrics need Java. They are not used here: captions are compared by exact match.
            warnings.simplefilter("ignore")
            metrics[task] = score(task, predictions)
        (output / task / "scores.json").write_text(json.dumps({"default": metrics[task]}, indent=2) + "\n")
    return metrics


def print_table(metrics: dict[str, dict[str, float]]) -> None:
    """Prints the metrics of `TARGETS` with their 95 % intervals, and the share of answers that are cut off or cannot be parsed."""
    print("| task | metric | measured | 95 % interval | target (2 CPU cores) | target (H100) | unreadable answers |")
    print("|---|---|---|---|---|---|---|")
    for task, found in metrics.items():
        lost = (found["unparsable"] + found["cut_off"]) / found["count"]
        for key, (cpu, gpu) in TARGETS[task].items():
            scale = 100 if key in PERCENT_METRICS else 1
            value, low, high = (found[name] / scale for name in (key, f"{key}_low", f"{key}_high"))
            mark = "" if value >= cpu else " (below)"
            print(f"| {task} | {key} | {value:.3f}{mark} | {low:.3f} – {high:.3f} | {cpu:.2f} | {gpu:.2f} | {lost:.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("split", type=Path, help="folder of the questions; written if it does not exist")
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions and scores")
    parser.add_argument("--world", type=int, default=0, help="seed of the questions that are written; docs/shapes.md has 0 and 1")
    parser.add_argument("--model", default=DEMO_MODEL_PATH, help="folder or hub id; by default the demo model")
    parser.add_argument("--batch-size", type=int, default=25, help="questions answered together")
    parser.add_argument("--limit", type=int, help="number of questions of each task; by default all")
    parser.add_argument("--tasks", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="tasks; by default all")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    if not arguments.split.is_dir():
        write_questions(arguments.split, "test", QUESTIONS_PER_TASK["test"], NUM_FRAMES, world=arguments.world)
    processor = LlavaSTProcessor.from_pretrained(arguments.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    start = time.monotonic()
    metrics = measure(
        model, processor, arguments.split, arguments.output, arguments.model, arguments.batch_size, arguments.limit, arguments.tasks
    )
    print_table(metrics)
    print(f"{sum(int(found['count']) for found in metrics.values())} questions in {time.monotonic() - start:.0f} seconds")
