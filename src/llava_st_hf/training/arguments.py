# SPDX-License-Identifier: Apache-2.0
"""What a recipe says about training, beside what TRL's `SFTConfig` and `ModelConfig` say."""

import math
from dataclasses import dataclass, field
from typing import get_args

from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from ..model.video_decoding_llava_st import check_backend
from .collator import OnError
from .labels import LossOn
from .trainable import check_trainable_modules


_BY_COLLATOR = "samples with media are prepared by the collator"
_OWN_LOSS = "coordinates have soft targets, and a loss of their own"
# Settings of SFTConfig that would have no effect, or a wrong one.
_FIXED = {
    "remove_unused_columns": (False, _BY_COLLATOR),
    "packing": (False, _BY_COLLATOR),
    "padding_free": (False, _BY_COLLATOR),
    "assistant_only_loss": (False, "loss_on says what is learned"),
    "completion_only_loss": (None, "loss_on says what is learned"),
    "loss_type": ("nll", _OWN_LOSS),
    "label_smoothing_factor": (0.0, _OWN_LOSS),
}


@dataclass
class LlavaSTTrainingConfig(SFTConfig):
    r"""
    Arguments of [`LlavaSTTrainer`]. All of [`~trl.SFTConfig`], and:

    Args:
        train (`list[str]`, *optional*, defaults to `["packer", "input_embeddings", "coordinate_embeddings", "lora"]`):
            Parts of the model that are trained: see `llava_st_hf.training.TRAINABLE_MODULES`. All others are frozen.
        learning_rates (`dict[str, float]`, *optional*):
            Learning rate of parts that do not have `learning_rate`.
        muon (`bool`, *optional*, defaults to `False`):
            Update the weight matrices of projector, packer and language model by Muon, in place of AdamW: see
            `llava_st_hf.training.MuonAdamW`. For training from random weights.
        loss_on (`str`, *optional*, defaults to `"assistant"`):
            Which tokens are learned: `"assistant"`, or `"released"` for the scheme of the released program.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What a sample does that cannot be used: `"raise"` stops the run, `"skip"` leaves it out and logs why.
        max_errors (`int`, *optional*, defaults to 100):
            With `on_error="skip"`: a process that had to leave out more samples than this stops the run.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            As in transformers. `"group_by_length"` makes batches of one modality and of like length.
        video_backend (`str`, *optional*, defaults to `"pyav"`):
            What reads video files: `"pyav"`, or `"decord"`, which reads the files that it reads exactly.
        allow_truncated (`bool`, *optional*, defaults to `False`):
            Train on truncated video files as far as they go. By default such a sample cannot be used.
        max_length (`int`, *optional*):
            Longest sample in tokens, media included; a longer one cannot be used. None for no limit.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "learning_rates"]

    train: list[str] = field(
        default_factory=lambda: ["packer", "input_embeddings", "coordinate_embeddings", "lora"],
        metadata={"help": "Parts of the model that are trained."},
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rate of parts that do not have `learning_rate`, as {part: rate}."}
    )
    muon: bool = field(default=False, metadata={"help": "Update weight matrices by Muon, in place of AdamW."})
    loss_on: LossOn = field(default="assistant", metadata={"help": "Which tokens are learned."})
    on_error: OnError = field(default="raise", metadata={"help": "What a sample does that cannot be used."})
    max_errors: int = field(default=100, metadata={"help": "Samples that one process may leave out."})
    video_backend: str = field(default="pyav", metadata={"help": "What reads video files: pyav or decord."})
    allow_truncated: bool = field(default=False, metadata={"help": "Train on truncated video files as far as they go."})
    # The loss needs exact positions and media, so samples are prepared by our collator alone.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    max_length: int | None = field(default=None, metadata={"help": "Longest sample in tokens, media included."})
    loss_type: str = field(default="nll", metadata={"help": "Must stay nll."})  # TRL 1.14 has another default
    # In a training step of several processes each runs every part of the model.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in transformers."})

    def __post_init__(self):
        super().__post_init__()
        self.train = check_trainable_modules(self.train, "train")
        self.learning_rates = self._checked_rates()
        for name, choices in (("loss_on", get_args(LossOn)), ("on_error", get_args(OnError))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}.")
        check_backend(self.video_backend)
        for name in ("max_errors", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value} must not be negative.")
        for name, (value, reason) in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {value!r}: {reason}.")
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError('hub_strategy must be "end": checkpoints are not uploaded while a run goes on.')
        if self.muon and self.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
            raise ValueError(f"muon=True goes with AdamW for what is no matrix: optim must be 'adamw_torch', not {self.optim!r}.")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}

    def _checked_rates(self) -> dict[str, float] | None:
        if self.learning_rates is None:
            return None
        if not isinstance(self.learning_rates, dict):
            raise ValueError(f"learning_rates={self.learning_rates!r} must be a dictionary like {{'lora': 2.0e-4}}.")
        rates = {}
        for part, rate in self.learning_rates.items():
            check_trainable_modules([part], "learning_rates")
            if part not in self.train:
                raise ValueError(f"learning_rates names {part}, which is not trained: train is {', '.join(self.train)}.")
            try:
                rates[part] = float(rate)  # YAML reads 1e-4 as text
            except (TypeError, ValueError):
                rates[part] = math.nan
            if not 0 <= rates[part] < math.inf:
                raise ValueError(f"The learning rate of {part} must be a number of at least 0, not {rate!r}.")
        return rates
