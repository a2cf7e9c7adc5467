# SPDX-License-Identifier: Apache-2.0
"""Merges adapter folders into their base models: PEFT folders of this package, and stage folders of the original LLaVA-ST code."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
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
        ValueError: naming the file, and the tensor that does not fit the base.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not os.path.isfile(os.path.join(adapter, name)):
            raise FileNotFoundError(f"{adapter} is not an adapter folder: it has no {name}.")
    base = base if base is not None else _base_of(adapter)
    if os.path.isfile(os.path.join(adapter, OTHER_WEIGHTS)):
        return merge_lora(base, adapter, **kwargs)
    return _merge_peft(adapter, base, **kwargs)


def _base_of(adapter: str | os.PathLike) -> str:
    if os.path.isfile(os.path.join(adapter, BASE_FOLDER, "config.json")):
        return os.path.join(adapter, BASE_FOLDER)
    try:
        base = json.loads(Path(adapter, ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} is damaged: {error}") from error
    if not base:
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} does not name the base model; pass it as `base`.")
    return base


def _merge_peft(adapter: str | os.PathLike, base: str | os.PathLike, **kwargs) -> LlavaSTForConditionalGeneration:
    from peft import PeftModel, get_peft_model_state_dict

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
