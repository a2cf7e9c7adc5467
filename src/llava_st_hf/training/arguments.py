# SPDX-License-Identifier: Apache-2.0
"""Arguments of a training run, in addition to TRL's `SFTConfig` and `ModelConfig`."""

import math
from dataclasses import dataclass, field
from typing import get_args

from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from ..model.model_card_llava_st import check_card
from ..model.renamed_arguments_llava_st import warn_renamed
from ..model.video_decoding_llava_st import check_backend
from .answer_coordinates import check_answer_coordinates
from .collator import OnError
from .labels import check_loss_on
from .liger_kernels import check_liger_config
from .selective_checkpointing import check_kept_activations
from .trainable import check_trainable_modules


_BY_COLLATOR = "the data collator prepares samples with media"
_OWN_LOSS = "the loss has soft targets for coordinates"
# Arguments of SFTConfig that would have no effect, or a wrong one.
_FIXED = {
    "remove_unused_columns": (False, _BY_COLLATOR),
    "packing": (False, _BY_COLLATOR),
    "padding_free": (False, _BY_COLLATOR),
    "assistant_only_loss": (False, "use loss_on"),
    "completion_only_loss": (None, "use loss_on"),
    "loss_type": ("nll", _OWN_LOSS),
    "label_smoothing_factor": (0.0, _OWN_LOSS),
}
# Arguments of version 0.1 → their names now.
_RENAMED = {"train": "trainable_modules", "label_scheme": "loss_on"}


def replace_renamed_arguments(args: object, renamed: dict[str, str]) -> None:
    """Moves the value of each argument of `args` with an old name to the new name, with a `FutureWarning`.

    Args:
        args: an instance of a dataclass in which old names have the default None.
        renamed: old name → new name.

    Raises:
        ValueError: if the old and the new name have been given different values.
    """
    for old, new in renamed.items():
        value = getattr(args, old)
        if value is None:
            continue
        warn_renamed(f"The argument {old}", new, stacklevel=5)
        definition = type(args).__dataclass_fields__[new]
        default = definition.default_factory() if callable(definition.default_factory) else definition.default
        if getattr(args, new) not in (default, value):
            raise ValueError(f"{old}={value!r} and {new}={getattr(args, new)!r} differ; {old} is the old name of {new}: remove it.")
        setattr(args, new, value)
        setattr(args, old, None)


@dataclass
class LlavaSTTrainingConfig(SFTConfig):
    r"""
    Arguments of [`LlavaSTTrainer`]. All of [`~trl.SFTConfig`], and:

    Args:
        trainable_modules (`list[str]`, *optional*, defaults to `["packer", "input_embeddings", "coordinate_embeddings", "lora"]`):
            Modules to train, keys of `llava_st_hf.training.TRAINABLE_MODULES`. All others are frozen.
        learning_rates (`dict[str, float]`, *optional*):
            Learning rates of modules that differ from `learning_rate`.
        muon (`bool`, *optional*, defaults to `False`):
            Update the weight matrices of projector, packer and language model by Muon instead of AdamW: see
            `llava_st_hf.training.MuonAdamW`. For training from random weights.
        loss_on (`str`, *optional*, defaults to `"assistant"`):
            Tokens included in the loss. `"assistant"`: assistant replies and their `<|im_end|>`. `"original"`: as in the original
            LLaVA-ST training code, also message headers and the `<|im_start|>`, `<|im_end|>` and newline tokens of other messages.
        answer_coordinates (`str`, *optional*, defaults to `"exact"`):
            Inputs of the coordinates in answers. `"exact"`: exact positions, interpolated between two bins, as in the paper. `"bins"`: the
            nearest bins, as in generation. `"mixed"`: either of them for half of the conversations, chosen at random in each step. Targets
            are the exact positions in every case, and evaluation during training always has bins as inputs.
        on_error (`str`, *optional*, defaults to `"raise"`):
            What to do with a sample that cannot be used: `"raise"` stops training, `"skip"` drops it and logs the reason.
        max_errors (`int`, *optional*, defaults to 100):
            With `on_error="skip"`: stop training when more different samples than this have been dropped by all processes together. A
            process counts its own at once, and those of the others at each log.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            As in transformers. `"group_by_length"` makes batches of one modality and of similar length.
        video_backend (`str`, *optional*, defaults to `"pyav"`):
            Decoder of video files: `"pyav"`, or `"decord"` for the files that it decodes exactly.
        allow_truncated (`bool`, *optional*, defaults to `False`):
            Train on the readable beginning of truncated video files. By default such a sample cannot be used.
        max_length (`int`, *optional*):
            Maximum length of a sample in tokens, including those of media; a longer sample cannot be used. None for no limit.
        compile_vision_tower (`bool`, *optional*, defaults to `False`):
            Compile the layers of the frozen vision encoder with `torch.compile`. The first step then takes longer.
        selective_checkpointing (`str`, *optional*):
            With `gradient_checkpointing`: results of the decoder's layers that are kept instead of computed again in the backward pass.
            `"reductions"`: those of attention and of products that are smaller than their input. `"matmuls"`: those of attention and of
            all products. None for no results.
        accelerator_config (`dict`, *optional*):
            As in transformers. By default batches in pinned memory are copied to a GPU while it computes (`{"non_blocking": True}`).
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            As in transformers, where it is on: every step then waits for the device to compute its loss.
        hub_license (`str`, *optional*):
            Licence in the model card, an identifier of the hub such as `"apache-2.0"`.
        hub_datasets (`list[str]`, *optional*):
            Hub ids of the training data in the model card.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "learning_rates"]

    trainable_modules: list[str] = field(
        default_factory=lambda: ["packer", "input_embeddings", "coordinate_embeddings", "lora"],
        metadata={"help": "Modules to train; all others are frozen."},
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": "Learning rates of modules that differ from `learning_rate`, as {module: rate}."}
    )
    muon: bool = field(default=False, metadata={"help": "Update weight matrices by Muon instead of AdamW."})
    loss_on: str = field(default="assistant", metadata={"help": "Tokens included in the loss: assistant or original."})
    answer_coordinates: str = field(
        default="exact",
        metadata={"help": "Inputs of the coordinates in answers: exact positions, the nearest bins, or mixed (half of each)."},
    )
    on_error: OnError = field(
        default="raise",
        metadata={"help": "What to do with a sample that cannot be used: raise stops training, skip drops it and logs the reason."},
    )
    max_errors: int = field(default=100, metadata={"help": "Maximum number of samples that all processes together may drop."})
    video_backend: str = field(default="pyav", metadata={"help": "Decoder of video files: pyav or decord."})
    allow_truncated: bool = field(default=False, metadata={"help": "Train on the readable beginning of truncated video files."})
    compile_vision_tower: bool = field(default=False, metadata={"help": "Compile the layers of the frozen vision encoder."})
    selective_checkpointing: str | None = field(
        default=None,
        metadata={"help": "Results that gradient checkpointing keeps in the decoder's layers: reductions or matmuls."},
    )
    accelerator_config: dict | str | None = field(
        default=None, metadata={"help": "As in transformers; with pinned memory batches are copied without waiting by default."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "As in transformers; each step then waits for its loss."})
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "Must be end."})
    hub_license: str | None = field(default=None, metadata={"help": "Licence in the model card, such as apache-2.0."})
    hub_datasets: list[str] | None = field(default=None, metadata={"help": "Hub ids of the training data in the model card."})
    train: list[str] | None = field(default=None, metadata={"help": "Deprecated: use trainable_modules."})
    label_scheme: str | None = field(default=None, metadata={"help": "Deprecated: use loss_on."})
    # The collator needs all columns: the loss depends on exact positions and media.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be false."})
    max_length: int | None = field(default=None, metadata={"help": "Maximum length of a sample in tokens, including those of media."})
    loss_type: str = field(default="nll", metadata={"help": "Must be nll."})  # TRL 1.14 has another default
    # With `blank_media` of the collator, every process has a gradient for every trained weight.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "As in transformers."})

    def __post_init__(self):
        if self.accelerator_config is None:
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory and not self.use_cpu}
        super().__post_init__()
        replace_renamed_arguments(self, _RENAMED)
        self.trainable_modules = check_trainable_modules(self.trainable_modules, "trainable_modules")
        self.learning_rates = self._checked_rates()
        self.loss_on = check_loss_on(self.loss_on)
        self.answer_coordinates = check_answer_coordinates(self.answer_coordinates)
        if self.on_error not in get_args(OnError):
            raise ValueError(f"on_error={self.on_error!r} must be one of {', '.join(get_args(OnError))}.")
        check_backend(self.video_backend)
        for name in ("max_errors", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}={value} must not be negative.")
        self.selective_checkpointing = check_kept_activations(self.selective_checkpointing)
        if self.selective_checkpointing and not self.gradient_checkpointing:
            raise ValueError(
                f"selective_checkpointing={self.selective_checkpointing!r} has an effect with gradient_checkpointing: true only."
            )
        if self.compile_vision_tower and "vision_tower" in self.trainable_modules:
            raise ValueError(
                "compile_vision_tower=True compiles a frozen vision encoder: remove vision_tower from trainable_modules, or set it to "
                "False."
            )
        if self.use_liger_kernel:
            check_liger_config(self.liger_kernel_config, self.selective_checkpointing is not None)
        for name, (value, reason) in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {value!r}: {reason}.")
        check_card(self.hub_license, self.hub_datasets or ())
        if self.push_to_hub and self.hub_strategy != HubStrategy.END:
            raise ValueError('hub_strategy must be "end": checkpoints are not uploaded during a run.')
        if self.muon and self.optim not in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED):
            raise ValueError(f"muon=True updates all other parameters by AdamW: optim must be 'adamw_torch', got {self.optim!r}.")
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}

    def _checked_rates(self) -> dict[str, float] | None:
        if self.learning_rates is None:
            return None
        if not isinstance(self.learning_rates, dict):
            raise ValueError(f"learning_rates={self.learning_rates!r} must be a dictionary like {{'lora': 2.0e-4}}.")
        rates = {}
        for name, value in self.learning_rates.items():
            [module] = check_trainable_modules([name], "learning_rates")
            if module not in self.trainable_modules:
                modules = ", ".join(self.trainable_modules)
                raise ValueError(f"learning_rates contains {module}, which is not trained: trainable_modules is {modules}.")
            try:
                rates[module] = float(value)  # YAML reads 1e-4 as text
            except (TypeError, ValueError):
                rates[module] = math.nan
            if not 0 <= rates[module] < math.inf:
                raise ValueError(f"The learning rate of {module} must be a number of at least 0, got {value!r}.")
        return rates
