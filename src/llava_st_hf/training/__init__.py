# SPDX-License-Identifier: Apache-2.0
"""Training on TRL: `pip install llava-st-hf[train]`."""

from ..checkpoints.model_card import describe_mixture
from .arguments import LlavaSTTrainingConfig
from .collator import LlavaSTDataCollator
from .labels import make_labels
from .muon import MuonAdamW
from .record import check_run
from .saving import last_checkpoint
from .stages import starting_folder
from .trainable import PARTS, make_trainable
from .trainer import LlavaSTTrainer


__all__ = [
    "PARTS",
    "LlavaSTDataCollator",
    "LlavaSTTrainer",
    "LlavaSTTrainingConfig",
    "MuonAdamW",
    "check_run",
    "describe_mixture",
    "last_checkpoint",
    "make_labels",
    "make_trainable",
    "starting_folder",
]
