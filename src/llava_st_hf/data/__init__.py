# SPDX-License-Identifier: Apache-2.0
"""Readers of annotation files: as chats with exact coordinates for training, as `GroundingSample` for evaluation.

Needs `pip install 'llava-st-hf[data]'`. Importing `llava_st_hf` does not import this package.
"""

import sys

from ..deprecation import renamed_attributes
from .charades_sta import read_charades_sta
from .grouping import GROUPED_FEATURES, pack_by_video
from .hc_stvg import read_hc_stvg
from .json_rows import BrokenFileError
from .jsonl import Chat, read_jsonl
from .loading import load_mixture
from .mixture import Entry, read_mixture
from .paths import join_path
from .questions import question_and_answer, sampled_moments
from .refcoco import read_refcoco
from .rows import FEATURES
from .samples import GroundingSample
from .validate import MediaChecks, Problem, validate_mixture
from .video_columns import fill_videos
from .vidstg import read_vidstg


__getattr__ = renamed_attributes(sys.modules[__name__])

__all__ = [
    "FEATURES",
    "GROUPED_FEATURES",
    "BrokenFileError",
    "Chat",
    "Entry",
    "GroundingSample",
    "MediaChecks",
    "Problem",
    "fill_videos",
    "join_path",
    "load_mixture",
    "pack_by_video",
    "question_and_answer",
    "read_charades_sta",
    "read_hc_stvg",
    "read_jsonl",
    "read_mixture",
    "read_refcoco",
    "read_vidstg",
    "sampled_moments",
    "validate_mixture",
]
