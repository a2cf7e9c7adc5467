# SPDX-License-Identifier: Apache-2.0
"""Model and processor of a command: checked and loaded from the values of its options."""

import os
from argparse import Namespace

import torch
from transformers import pipeline

from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.pipeline_llava_st import VideoGroundingPipeline
from ..model.processing_llava_st import LlavaSTProcessor
from ..shapes.demo_model import DEMO_MODEL_PATH


def refuse_adapter(model: str) -> None:
    if os.path.isfile(os.path.join(model, "adapter_config.json")):
        raise ValueError(f"{model} is an adapter, not a full model. Merge it into its base model with `llava-st merge-lora` first.")


def placement(device: str | None) -> dict:
    """
    Arguments of `transformers.pipeline` for `--device`.

    Raises:
        ValueError: if PyTorch has no such device on this computer.
    """
    if device is None:
        return {}
    if device == "auto":
        return {"device_map": "auto"}
    kind, _, index = device.partition(":")
    counts = {
        "cpu": lambda: 1,
        "cuda": torch.cuda.device_count,
        "mps": lambda: int(torch.backends.mps.is_available()),
        "xpu": lambda: torch.xpu.device_count() if torch.xpu.is_available() else 0,
    }
    if int(index or 0) >= (count := counts[kind]()):
        raise ValueError(f"--device {device} is not available: PyTorch {torch.__version__} finds {count} devices of the type {kind}.")
    return {"device": device}


def default_device() -> str:
    """The first GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_processor(args: Namespace) -> LlavaSTProcessor:
    """The processor of a model, after a check that both belong together. The weights are not read."""
    refuse_adapter(model := args.model or DEMO_MODEL_PATH)
    placement(args.device)
    processor = LlavaSTProcessor.from_pretrained(model)
    check_model_matches_processor(LlavaSTConfig.from_pretrained(model), processor)
    return processor


def load_pipeline(args: Namespace, processor: LlavaSTProcessor) -> VideoGroundingPipeline:
    dtype = {} if args.dtype is None else {"dtype": args.dtype}
    return pipeline("video-grounding", model=args.model or DEMO_MODEL_PATH, processor=processor, **placement(args.device), **dtype)
