# SPDX-License-Identifier: Apache-2.0
"""
Measures a model of the world of shapes on a held-out split, task by task, with the package's own evaluation.

    python training/shapes/measure.py runs/shapes/test --output runs/shapes/measured     # the bundled model
    python training/shapes/measure.py runs/shapes/test --model runs/shapes/export --output runs/shapes/measured

Where the folder is missing, 500 questions of each task of the test split are made there. Greedy; predictions are kept in the output folder,
which `llava-st report` turns into a page.
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


# What a model should reach that was trained on two CPU cores, and on one H100. `SHARES` are per cent in the figures, and fractions here.
FLOORS = {
    "rec": {"miou": (0.80, 0.87)},
    "reg": {"exact_match": (0.85, 0.95)},
    "dgc": {"object_recall@0.5": (0.75, 0.88)},
    "tvg": {"miou": (0.80, 0.90)},
    "tr": {"exact_match": (0.80, 0.92)},
    "stvg": {"m_tiou": (0.80, 0.88), "m_siou": (0.50, 0.66), "m_viou": (0.42, 0.56)},
    "svg": {"m_siou": (0.50, 0.68)},
    "elc": {"m_tiou": (0.78, 0.86), "exact_match": (0.85, 0.92)},
}
SHARES = ("exact_match", "object_recall@0.5")
_LONGEST = 200  # tokens of an answer; a tubelet over all 20 frames has about 150


def measure(
    model, processor, split: Path, output: Path, name: str, batch_size: int, limit: int | None, tasks: Iterable[str] = TASKS
) -> dict[str, dict[str, float]]:
    """Figures of each of `tasks`."""
    figures = {}
    for task in tasks:
        questions = read_benchmark("jsonl", str(split / f"{task}.jsonl"), str(split / "media"))[:limit]
        settings = EvaluationSettings(f"jsonl_{task}", name, batch_size, _LONGEST)
        predictions = run_benchmark(questions, model, processor, output / task, settings, read_own_answer, num_workers=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where Java is missing: similarity of captions says little of so small a language
            figures[task] = score(task, predictions)
        (output / task / "scores.json").write_text(json.dumps({"default": figures[task]}, indent=2) + "\n")
    return figures


def print_table(figures: dict[str, dict[str, float]]) -> None:
    print("| task | figure | measured | 95 % interval | floor (2 CPU cores) | floor (H100) | unreadable answers |")
    print("|---|---|---|---|---|---|---|")
    for task, floors in FLOORS.items():
        found = figures[task]
        lost = (found["unparsable"] + found["cut_off"]) / found["count"]
        for key, (cpu, gpu) in floors.items():
            scale = 100 if key in SHARES else 1
            value, low, high = (found[name] / scale for name in (key, f"{key}_low", f"{key}_high"))
            mark = "" if value >= cpu else " (below)"
            print(f"| {task} | {key} | {value:.3f}{mark} | {low:.3f} – {high:.3f} | {cpu:.2f} | {gpu:.2f} | {lost:.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("split", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default=DEMO_MODEL_PATH, help="folder or hub id; by default the model that comes with the package")
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--limit", type=int, help="questions of each task; by default all")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    if not arguments.split.is_dir():
        write_questions(arguments.split, "test", QUESTIONS_PER_TASK["test"], NUM_FRAMES)
    processor = LlavaSTProcessor.from_pretrained(arguments.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    start = time.monotonic()
    figures = measure(model, processor, arguments.split, arguments.output, arguments.model, arguments.batch_size, arguments.limit)
    print_table(figures)
    print(f"{sum(int(found['count']) for found in figures.values())} questions in {time.monotonic() - start:.0f} seconds")
