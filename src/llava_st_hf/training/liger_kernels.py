# SPDX-License-Identifier: Apache-2.0
"""Liger's Triton kernels of RMSNorm, RoPE and SwiGLU for the text decoder of a LLaVA-ST model: `use_liger_kernel: true` of a trainer.

Liger selects its functions by the model type, and leaves a model of an unknown type unchanged without a warning. Its cross-entropy is not
used: the loss of LLaVA-ST has soft targets, and does not build the logits of all positions either.
"""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import is_liger_kernel_available

from ..model.configuration_llava_st import LlavaSTConfig
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration


_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")
_KERNELS = ("rope", "rms_norm", "swiglu", "geglu")
_SILU = ("silu", "swish")


def check_liger_config(config: dict[str, bool] | None, selective: bool) -> None:
    """
    Raises a `ValueError` for a `liger_kernel_config` that LLaVA-ST cannot be trained with.

    Args:
        config: name of a kernel → whether it is used, as in transformers.
        selective: whether results of matrix products are kept for the backward pass.
    """
    for name, used in (config or {}).items():
        if name in _LOSSES and used:
            raise ValueError(f"liger_kernel_config has {name}: true, but the loss has soft targets for coordinates. Remove it.")
        if name not in (*_LOSSES, *_KERNELS):
            raise ValueError(f"liger_kernel_config has {name!r}; it must have keys among {', '.join(_KERNELS)}.")
    if selective and (config or {}).get("rope", True):
        # Liger rotates queries and keys in the memory of the projections' results. A kept result would be rotated again.
        raise ValueError(
            "Liger's RoPE overwrites results that selective_checkpointing keeps: set liger_kernel_config: {rope: false}, or "
            "selective_checkpointing: null."
        )


def apply_liger_kernels(
    model: LlavaSTForConditionalGeneration, rope: bool = True, rms_norm: bool = True, swiglu: bool = True, geglu: bool = True
) -> None:
    """
    Replaces operations of the text decoder by Liger's kernels, in place.

    RoPE is a function of the decoder's module in transformers, so it is replaced for all models of this type in the process.

    Args:
        model: to be run on a device that Triton compiles for.
        rope, rms_norm, swiglu, geglu: whether to use each kernel, as far as Liger has it for the type of the decoder.

    Raises:
        ValueError: if Liger has no kernels for the decoder, or if its MLP has another activation.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    decoder = model.model.language_model
    config = decoder.config
    _check_decoder(config.model_type)
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN[config.model_type]
    options = {"rope": rope, "rms_norm": rms_norm, "swiglu": swiglu, "geglu": geglu, **dict.fromkeys(_LOSSES, False)}
    options = {name: used for name, used in options.items() if name in inspect.signature(apply).parameters}
    if options.get("swiglu") and config.hidden_act not in _SILU:
        raise ValueError(
            f"The decoder has hidden_act={config.hidden_act!r}, and Liger's SwiGLU computes 'silu': set liger_kernel_config: "
            "{swiglu: false}."
        )
    apply(model=decoder, **options)


def check_liger_support(device: torch.device, decoder_type: str) -> None:
    """
    Raises an error where Liger's kernels cannot run.

    Args:
        device: of the model.
        decoder_type: `model_type` of the text decoder.

    Raises:
        ImportError: if liger-kernel is not installed.
        ValueError: on the CPU, and for types of decoders without kernels.
    """
    if not is_liger_kernel_available():
        raise ImportError("use_liger_kernel=True needs liger-kernel: pip install llava-st-hf[liger].")
    if device.type in ("cpu", "meta", "mps"):
        raise ValueError(
            f"use_liger_kernel=True needs a GPU: Liger's Triton kernels do not run on {device.type}. Set use_liger_kernel: false."
        )
    _check_decoder(decoder_type)


def _check_decoder(decoder_type: str) -> None:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if decoder_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(
            f"Liger has no kernels for a decoder of the model_type {decoder_type!r}; it has some for "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}. Set use_liger_kernel: false."
        )


def register_liger_kernels(device: torch.device, decoder_type: str) -> None:
    """
    Makes `use_liger_kernel` of transformers' and TRL's trainers call `apply_liger_kernels` for LLaVA-ST models.

    Args:
        device: that the model is trained on.
        decoder_type: `model_type` of the text decoder.

    Raises:
        ImportError: if liger-kernel is not installed.
        ValueError: on the CPU, and for types of decoders without kernels.
    """
    check_liger_support(device, decoder_type)
    from liger_kernel.transformers import monkey_patch

    monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[LlavaSTConfig.model_type] = apply_liger_kernels


@contextmanager
def without_liger_warning() -> Iterator[None]:
    """Suppresses TRL's warning that recommends `model_init_kwargs`, which has no effect on a model that has been loaded."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`use_liger_kernel=True` is deprecated", category=FutureWarning)
        yield
