# SPDX-License-Identifier: Apache-2.0
"""What a recipe says about training, beside what TRL's `SFTConfig` and `ModelConfig` say."""

from dataclasses import dataclass, field

from trl import SFTConfig

from .collator import OnError
from .labels import LabelScheme
from .trainable import check_parts


@dataclass
class LlavaSTTrainingConfig(SFTConfig):
    r"""
    Arguments of [`LlavaSTTrainer`]. All of [`~trl.SFTConfig`], and:

    Args:
        train (`list[str]`, *optional*, defaults to `["packer", "input_embeddings", "coordinate_rows", "lora"]`):
            Parts of the model that are trained: see `llava_st_hf.training.PARTS`. All others are frozen.
        learning_rates (`dict[str, float]`, *optional*):
            Learning rate of parts that do not have `learning_rate`.
        label_scheme (`str`, *optional*, defaults to `"assistant"`):
            Which tokens are learned: `"assistant"`, or `"released"` for the scheme of the released program.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What a sample does that cannot be used: `"raise"` stops the run, `"skip"` leaves it out and logs why.
        max_errors (`int`, *optional*, defaults to 100):
            With `on_error="skip"`: a process that had to leave out more samples than this stops the run.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            As in transformers. `"group_by_length"` makes batches of one modality and of like length.
        max_length (`int`, *optional*):
            Longest sample in tokens, media included; a longer one cannot be used. None for no limit.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "learning_rates"]

    train: list[str] = field(
        default_factory=lambda: ["packer", "input_embeddings", "coordinate_rows", "lora"],
        metadata={"help": "Parts of the model that are trained."},
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rate of parts that do not have `learning_rate`, as {part: rate}."}
    )
    label_scheme: LabelScheme = field(default="assistant", metadata={"help": "Which tokens are learned."})
    on_error: OnError = field(default="raise", metadata={"help": "What a sample does that cannot be used."})
    max_errors: int = field(default=100, metadata={"help": "Samples that one process may leave out."})
    # The loss needs exact positions and media, so samples are prepared by our collator alone.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    max_length: int | None = field(default=None, metadata={"help": "Longest sample in tokens, media included."})
    # In a training step of several processes each runs every part of the model.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in transformers."})

    def __post_init__(self):
        super().__post_init__()
        self.train = check_parts(self.train, "train")
        for part, rate in (self.learning_rates or {}).items():
            check_parts([part], "learning_rates")
            if part not in self.train:
                raise ValueError(f"learning_rates names {part}, which is not trained: train is {', '.join(self.train)}.")
            self.learning_rates[part] = float(rate)  # YAML reads 1e-4 as text
        if self.remove_unused_columns or self.packing:
            wrong = "packing" if self.packing else "remove_unused_columns"
            raise ValueError(f"{wrong} must be off: samples with media are prepared by the collator.")
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor} must be 0: coordinates have soft targets of their own.")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
