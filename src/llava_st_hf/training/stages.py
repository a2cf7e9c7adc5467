# SPDX-License-Identifier: Apache-2.0
"""The base model of a training run: the result of the stage before, merged and extended as the run needs it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.integrations import deepspeed

from ..checkpoints.adapters import BASE_FOLDER, merge_adapter
from ..checkpoints.atomic import finish_interrupted_write, save_model_and_processor
from ..checkpoints.conversion import ADAPTER_CONFIG, add_coordinate_tokens, add_coordinate_tokens_to_processor
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.coordinates_llava_st import DEFAULT_NUM_BINS
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from .saving import get_last_checkpoint


def prepare_base_model(
    model_name_or_path: str, output_dir: str | os.PathLike, parts: list[str], dtype: torch.dtype | str, seed: int = 0
) -> str:
    """
    Returns the folder or hub id of the complete model that a run starts from, and writes that model if needed.

    That is `model_name_or_path` itself if it holds a complete model with all modules to train. An adapter (of the stage before) is
    merged into its base, and a stage-1 model whose coordinate embeddings are to be trained gets coordinate tokens. The resulting model
    is saved once to `base` in the output folder; the adapter that this run trains belongs to it. Call it on one process.

    Args:
        model_name_or_path: folder or hub id of a model, or folder of an adapter.
        output_dir: folder of the run.
        parts: modules to train: see `prepare_model_for_training`.
        dtype: of the weights written.
        seed: of new coordinate embeddings. The global random state is not changed.

    Raises:
        ValueError, OSError: naming what is missing, or that the model cannot be saved.
    """
    base = Path(output_dir) / BASE_FOLDER
    finish_interrupted_write(base)
    if (base / "config.json").is_file():
        return str(base)  # of an earlier start of this run: `check_resume_compatibility` compares the settings
    _check_folder(model_name_or_path)
    is_adapter = os.path.isfile(os.path.join(model_name_or_path, ADAPTER_CONFIG))
    needs_coordinates = "coordinate_embeddings" in parts
    if not is_adapter:
        config = LlavaSTConfig.from_pretrained(model_name_or_path)
        if config.use_coordinate_tokens or not needs_coordinates:
            return model_name_or_path
        with _complete_weights():
            model = LlavaSTForConditionalGeneration.from_pretrained(model_name_or_path, dtype=dtype)
    else:
        with _complete_weights():
            model = merge_adapter(model_name_or_path, dtype=dtype)
    processor = LlavaSTProcessor.from_pretrained(model_name_or_path)
    if needs_coordinates and not model.config.use_coordinate_tokens:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_coordinate_tokens(model, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS)
    save_model_and_processor(model, add_coordinate_tokens_to_processor(model, processor), base)
    return str(base)


def load_initial_processor(model_name_or_path: str, output_dir: str | os.PathLike) -> LlavaSTProcessor:
    """
    Loads the processor of the model that a run starts from, before `prepare_base_model` is called.

    Args:
        model_name_or_path: folder or hub id of a model, or folder of an adapter.
        output_dir: of the run, whose `base` model is used if it exists.

    Raises:
        ValueError, OSError: naming what the folder lacks.
    """
    base = Path(output_dir) / BASE_FOLDER
    if (base / "config.json").is_file():
        return LlavaSTProcessor.from_pretrained(base)
    _check_folder(model_name_or_path)
    return LlavaSTProcessor.from_pretrained(model_name_or_path)


def _check_folder(model_name_or_path: str) -> None:
    """Raises an error for folders without a model, which would be used as a hub id or as a model of default sizes."""
    folder = Path(model_name_or_path)
    if not folder.exists():
        if folder.is_absolute() or model_name_or_path.count("/") > 1 or model_name_or_path.startswith("."):
            raise FileNotFoundError(f"model_name_or_path={model_name_or_path} does not exist.")
        return
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        checkpoint = get_last_checkpoint(folder)
        unfinished = f" It belongs to a run that has not ended: finish it, or start from {checkpoint}." if checkpoint else ""
        raise FileNotFoundError(f"model_name_or_path={model_name_or_path} contains neither a model nor an adapter.{unfinished}")


@contextmanager
def _complete_weights() -> Iterator[None]:
    """Loads complete weights in this process. ZeRO-3 would partition them over processes that do not take part."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
