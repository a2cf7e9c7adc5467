# SPDX-License-Identifier: Apache-2.0
"""Merges adapter folders into their base models: PEFT folders of this package, and stage folders of the original LLaVA-ST code."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.presence_llava_st import set_presence_calibration
from ..model.scores_llava_st import set_calibration
from .conversion import ADAPTER_CONFIG, ADAPTER_WEIGHTS, OTHER_WEIGHTS, merge_lora


BASE_FOLDER = "base"  # subfolder of an adapter's folder: its base model, if training has written one


def merge_adapter(adapter: str | os.PathLike, base: str | os.PathLike | None = None, **kwargs) -> LlavaSTForConditionalGeneration:
    """
    Loads the base model of an adapter folder and merges the adapter and all other trained modules into it.

    Args:
        adapter: a PEFT folder that this package trained, or a stage folder of the original LLaVA-ST code (see `merge_lora`).
        base: folder or hub id of the base model. By default the subfolder `base` of the adapter, or the model that its configuration
            names.
        kwargs: for `from_pretrained` of the base, such as `dtype`.

    Raises:
        FileNotFoundError: naming the file that the folder lacks.
        ImportError: for a PEFT folder, if PEFT is not installed.
        ValueError: naming the file, and the tensor that does not fit the base.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not os.path.isfile(os.path.join(adapter, name)):
            raise FileNotFoundError(f"{adapter} is not an adapter folder: it has no {name}.")
    base = base if base is not None else base_of(adapter)
    merge = merge_lora if os.path.isfile(os.path.join(adapter, OTHER_WEIGHTS)) else _merge_peft
    model = merge(base, adapter, **kwargs)
    set_calibration(model.generation_config, None)  # that of the base
    set_presence_calibration(model.generation_config, None)
    return model


def base_of(adapter: str | os.PathLike) -> str:
    """
    Returns the folder or hub id of an adapter's base model: its subfolder `base`, or the model that its configuration names.

    Raises:
        FileNotFoundError: if the configuration names a folder that does not exist (any more).
        ValueError: if the configuration is damaged, or names no model.
    """
    if os.path.isfile(os.path.join(adapter, BASE_FOLDER, "config.json")):
        return os.path.join(adapter, BASE_FOLDER)
    try:
        base = json.loads(Path(adapter, ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} is damaged: {error}") from error
    if not base:
        raise ValueError(
            f"{adapter}/{ADAPTER_CONFIG} does not name the base model (an uploaded adapter does not if its base was a local folder): give "
            "the folder or hub id of the model that the adapter was trained on."
        )
    if _is_local(base) and not os.path.isdir(base):
        raise FileNotFoundError(
            f"{adapter}/{ADAPTER_CONFIG} names the base model {base}, which is not a folder here: give the folder or hub id of the model "
            "that the adapter was trained on."
        )
    return base


def _is_local(base: str) -> bool:
    """Whether the name of a model is a path, and not a hub id, which has the form `name` or `owner/name`."""
    return os.path.isdir(base) or os.path.isabs(base) or base.startswith((".", "~")) or base.count("/") > 1


def _merge_peft(base: str | os.PathLike, adapter: str | os.PathLike, **kwargs) -> LlavaSTForConditionalGeneration:
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ModuleNotFoundError as error:
        raise ImportError(f"Merging the adapter {adapter} needs {error.name}: pip install 'llava-st-hf[train]'.") from error
    try:
        with safe_open(os.path.join(adapter, ADAPTER_WEIGHTS), framework="pt") as weights:
            found = set(weights.keys())
    except SafetensorError as error:
        raise ValueError(f"{adapter}/{ADAPTER_WEIGHTS} is damaged: {error}") from error
    model = LlavaSTForConditionalGeneration.from_pretrained(base, **kwargs)
    try:
        adapted = PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, IndexError) as error:  # another shape, or token ids that the base does not have
        raise ValueError(f"The adapter {adapter} is not for {base}: {error}") from error
    # PEFT ignores tensors that do not fit.
    wanted = set(get_peft_model_state_dict(adapted))
    for names, problem in ((found - wanted, "contains {}, which is not in"), (wanted - found, "lacks {} of")):
        if names:
            some = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise ValueError(f"The adapter {adapter} {problem.format(some)} {base}.")
    return adapted.merge_and_unload()
