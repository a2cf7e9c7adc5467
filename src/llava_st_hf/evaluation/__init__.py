# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of grounding: questions, answers, and what they score.

Needs `pip install 'llava-st-hf[eval]'`. Importing `llava_st_hf` does not import this package.
"""

from .answers import READERS, Asked
from .benchmarks import BENCHMARKS, read_benchmark
from .predictions import read_predictions
from .published import PUBLISHED
from .rows import Grounding, Prediction, Question
from .runner import EvaluationSettings, run_benchmark
from .scoring import score


__all__ = [
    "BENCHMARKS",
    "PUBLISHED",
    "READERS",
    "Asked",
    "EvaluationSettings",
    "Grounding",
    "Prediction",
    "Question",
    "read_benchmark",
    "read_predictions",
    "run_benchmark",
    "score",
]
