# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of grounding: questions, answers, and what they score.

Needs `pip install 'llava-st-hf[eval]'`. Importing `llava_st_hf` does not import this package.
"""

import sys

from ..deprecation import renamed_attributes
from .answers import ANSWER_PARSERS, ParseContext
from .benchmarks import BENCHMARKS, read_benchmark
from .predictions import read_predictions
from .published import PUBLISHED
from .rows import GroundingResult, Prediction, Question
from .runner import EvaluationSettings, run_benchmark
from .scoring import score


__getattr__ = renamed_attributes(sys.modules[__name__])

__all__ = [
    "ANSWER_PARSERS",
    "BENCHMARKS",
    "PUBLISHED",
    "EvaluationSettings",
    "GroundingResult",
    "ParseContext",
    "Prediction",
    "Question",
    "read_benchmark",
    "read_predictions",
    "run_benchmark",
    "score",
]
