# SPDX-License-Identifier: Apache-2.0
"""From one stage to the next: a run starts from the folder that the last one left, whatever that holds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.integrations import deepspeed

from ..checkpoints.adapters import BASE_FOLDER, merge_adapter
from ..checkpoints.conversion import ADAPTER_CONFIG, add_coordinate_tokens, add_coordinate_tokens_to_processor
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.coordinates_llava_st import DEFAULT_NUM_BINS
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from .saving import atomic_folder, get_last_checkpoint


def prepare_base_model(model_name_or_path: str, output_dir: str | os.PathLike, parts: list[str], dtype: torch.dtype | str) -> str:
    """
    The folder with the whole model that a run starts from.

    That is `model_name_or_path` itself where it holds a whole model that has the parts to be trained. An adapter folder (of the stage
    before) is merged into its base, and a model of stage 1 whose coordinate rows are to be trained gets fresh ones. Such a
    model is written to `base` in the output folder, where the adapter that this run trains finds it again. Call it in one process.

    Args:
        model_name_or_path: folder or hub id of a model, or folder of an adapter.
        output_dir: of the run.
        parts: what is trained: see `prepare_model_for_training`.
        dtype: of the weights written.

    Raises:
        ValueError, OSError: naming what the folder lacks.
    """
    base = Path(output_dir) / BASE_FOLDER
    if (base / "config.json").is_file():
        return str(base)  # made when the run was first started; `check_resume_compatibility` sees to it that this is the same
    _check_folder(model_name_or_path)
    is_adapter = os.path.isfile(os.path.join(model_name_or_path, ADAPTER_CONFIG))
    needs_rows = "coordinate_embeddings" in parts
    if not is_adapter:
        config = LlavaSTConfig.from_pretrained(model_name_or_path)
        if config.use_coordinate_tokens or not needs_rows:
            return model_name_or_path
        with _whole_weights():
            model = LlavaSTForConditionalGeneration.from_pretrained(model_name_or_path, dtype=dtype)
    else:
        with _whole_weights():
            model = merge_adapter(model_name_or_path, dtype=dtype)
    processor = LlavaSTProcessor.from_pretrained(model_name_or_path)
    if needs_rows and not model.config.use_coordinate_tokens:
        add_coordinate_tokens(model, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS)
    processor = add_coordinate_tokens_to_processor(model, processor)
    with atomic_folder(base) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(base)


def _check_folder(model_name_or_path: str) -> None:
    """Refuses folders that hold no model, before they are taken for a hub id or for a model of default sizes."""
    folder = Path(model_name_or_path)
    if not folder.exists():
        if folder.is_absolute() or model_name_or_path.count("/") > 1 or model_name_or_path.startswith("."):
            raise FileNotFoundError(f"model_name_or_path={model_name_or_path} does not exist.")
        return
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        checkpoint = get_last_checkpoint(folder)
        unfinished = f" It is of a run that has not ended: finish that, or start from {checkpoint}." if checkpoint else ""
        raise FileNotFoundError(f"model_name_or_path={model_name_or_path} holds neither a model nor an adapter.{unfinished}")


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Loads whole weights in this process, where ZeRO-3 would spread them over processes that do not take part."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
