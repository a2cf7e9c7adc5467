# SPDX-License-Identifier: Apache-2.0
"""From one stage to the next: a run starts from the folder that the last one left, whatever that holds."""

import os
from pathlib import Path

import torch
from transformers.utils import logging

from ..adapters_llava_st import BASE_FOLDER, merge_adapter
from ..configuration_llava_st import LlavaSTConfig
from ..conversion_llava_st import ADAPTER_CONFIG, add_coordinate_rows, processor_for
from ..coordinates import DEFAULT_NUM_BINS
from ..modeling_llava_st import LlavaSTForConditionalGeneration
from ..processing_llava_st import LlavaSTProcessor
from .saving import whole_folder


logger = logging.get_logger(__name__)


def starting_folder(model_name_or_path: str, output_dir: str | os.PathLike, parts: list[str], dtype: torch.dtype | str) -> str:
    """
    The folder with the whole model that a run starts from.

    That is `model_name_or_path` itself where it holds a whole model that has the parts to be trained. An adapter folder (of the stage
    before) is merged into its base, and a model of stage 1 whose coordinate rows are to be trained gets fresh ones. Such a
    model is written to `base` in the output folder, where the adapter that this run trains finds it again. Call it in one process.

    Args:
        model_name_or_path: folder or hub id of a model or an adapter.
        output_dir: of the run.
        parts: what is trained: see `make_trainable`.
        dtype: of the weights written.

    Raises:
        ValueError, OSError: naming what the folder lacks.
    """
    base = Path(output_dir) / BASE_FOLDER
    if (base / "config.json").is_file():
        logger.info("Starting from %s, made of %s when the run was first started.", base, model_name_or_path)
        return str(base)
    is_adapter = os.path.isfile(os.path.join(model_name_or_path, ADAPTER_CONFIG))
    needs_rows = "coordinate_rows" in parts
    if not is_adapter:
        config = LlavaSTConfig.from_pretrained(model_name_or_path)
        if config.use_lape or not needs_rows:
            return model_name_or_path
        model = LlavaSTForConditionalGeneration.from_pretrained(model_name_or_path, dtype=dtype)
    else:
        model = merge_adapter(model_name_or_path, dtype=dtype)
    processor = LlavaSTProcessor.from_pretrained(model_name_or_path)
    if needs_rows and not model.config.use_lape:
        add_coordinate_rows(model, DEFAULT_NUM_BINS, DEFAULT_NUM_BINS)
    processor = processor_for(model, processor)
    with whole_folder(base) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(base)
