# SPDX-License-Identifier: Apache-2.0
"""Model and processor of a command: checked and loaded from the values of its options."""

import os
from argparse import Namespace

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError
from transformers import pipeline

from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.pipeline_llava_st import VideoGroundingPipeline
from ..model.processing_llava_st import LlavaSTProcessor
from ..shapes.demo_model import DEMO_MODEL_PATH


def refuse_adapter(model: str) -> None:
    """
    Refuses an adapter, and a model that is neither a folder nor on the Hugging Face Hub.

    Raises:
        ValueError, OSError: naming the model.
    """
    if not os.path.isdir(model):
        _check_hub_id(model)
    if os.path.isfile(os.path.join(model, "adapter_config.json")):
        raise ValueError(f"{model} is an adapter, not a full model. Merge it into its base model with `llava-st merge-lora` first.")


def _check_hub_id(model: str) -> None:
    """Looks for the configuration of a model in the cache, then on the hub, once and for at most 10 seconds."""
    unknown = f"{model} is not a folder and not a model of the Hugging Face Hub that can be read"
    try:
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=10)
    except HFValidationError as error:
        raise FileNotFoundError(f"{model} is not a folder, and not the id of a model, which has the form owner/name.") from error
    except (GatedRepoError, RepositoryNotFoundError, EntryNotFoundError) as error:
        raise OSError(f"{unknown}: {type(error).__name__}. Check its name; private models need `hf auth login`.") from error
    except (OSError, HTTPError) as error:
        raise OSError(f"{unknown}: the hub cannot be reached ({type(error).__name__}).") from error


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
