# SPDX-License-Identifier: Apache-2.0
"""Training on TRL: `pip install llava-st-hf[train]`."""

import sys

from ..deprecation import renamed_attributes
from .arguments import LlavaSTTrainingConfig
from .collator import LlavaSTDataCollator
from .grpo import LlavaSTGRPOTrainer, grpo_dataset
from .labels import make_labels
from .liger_kernels import register_liger_kernels
from .model_card import describe_mixture
from .muon import MuonAdamW
from .preference_collator import LlavaSTPreferenceCollator
from .run_metadata import check_resume_compatibility
from .saving import get_last_checkpoint
from .stages import load_initial_processor, prepare_base_model
from .trainable import TRAINABLE_MODULES, prepare_model_for_training
from .trainer import LlavaSTTrainer


__getattr__ = renamed_attributes(sys.modules[__name__])

__all__ = [
    "TRAINABLE_MODULES",
    "LlavaSTDataCollator",
    "LlavaSTGRPOTrainer",
    "LlavaSTPreferenceCollator",
    "LlavaSTTrainer",
    "LlavaSTTrainingConfig",
    "MuonAdamW",
    "check_resume_compatibility",
    "describe_mixture",
    "get_last_checkpoint",
    "grpo_dataset",
    "load_initial_processor",
    "make_labels",
    "prepare_base_model",
    "prepare_model_for_training",
    "register_liger_kernels",
]
