# SPDX-License-Identifier: Apache-2.0
"""
Compares two models on the same questions of the Shapes dataset, from the predictions that measure.py wrote.

    python training/shapes/compare.py runs/shapes/measured runs/shapes/measured_grpo --tasks tvg stvg svg

Prints each metric that is a mean over questions, before and after, and the 95 % bootstrap interval of the difference of paired questions.
"""

import argparse
from pathlib import Path

import numpy as np

from llava_st_hf.evaluation import Prediction, read_predictions
from llava_st_hf.evaluation.metrics import bootstrap_interval
from llava_st_hf.evaluation.runner import PREDICTIONS
from llava_st_hf.evaluation.scoring import SampleColumns


METRICS = ("miou", "m_tiou", "m_siou", "m_viou")


def metrics_of_questions(task: str, predictions: list[Prediction]) -> dict[str, np.ndarray]:
    """Returns the metrics of `METRICS` that a task has, (N,) each, in the order of the ids of the questions."""
    columns = SampleColumns(task)
    for prediction in sorted(predictions, key=lambda prediction: prediction.id):
        columns.append(prediction)
    return {name: values for name, values in columns.values().items() if name in METRICS}


def compare(task: str, before: Path, after: Path) -> dict[str, tuple[float, float, float, float, int]]:
    """
    Compares the predictions of two folders.

    Args:
        task: of the questions.
        before, after: folders with predictions of the task.

    Returns:
        Metric → `(mean before, mean after, lower bound, upper bound of the difference, number of questions)`.

    Raises:
        ValueError: if the folders have predictions of different questions.
    """
    sides = [list(read_predictions(folder / PREDICTIONS)) for folder in (before, after)]
    ids = [sorted(prediction.id for prediction in side) for side in sides]
    if ids[0] != ids[1]:
        raise ValueError(f"{before} and {after} have predictions of different questions ({len(ids[0])} and {len(ids[1])}).")
    metrics = [metrics_of_questions(task, side) for side in sides]
    found = {}
    for name, values in metrics[0].items():
        low, high = bootstrap_interval(metrics[1][name] - values)
        found[name] = (float(values.mean()), float(metrics[1][name].mean()), float(low), float(high), len(values))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("before", type=Path, help="--output of measure.py for the first model")
    parser.add_argument("after", type=Path, help="the same for the second model")
    parser.add_argument("--tasks", nargs="+", default=["tvg", "stvg", "svg"], help="tasks of the questions")
    arguments = parser.parse_args()
    print("| task | metric | before | after | difference | 95 % interval | questions |")
    print("|---|---|---|---|---|---|---|")
    for task in arguments.tasks:
        for name, (first, second, low, high, count) in compare(task, arguments.before / task, arguments.after / task).items():
            print(f"| {task} | {name} | {first:.4f} | {second:.4f} | {second - first:+.4f} | {low:+.4f} – {high:+.4f} | {count} |")
