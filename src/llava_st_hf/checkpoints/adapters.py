# SPDX-License-Identifier: Apache-2.0
"""Adapter folders → whole models, whoever trained them: ordinary PEFT folders of this package, and the released program's stages."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from .conversion import ADAPTER_CONFIG, ADAPTER_WEIGHTS, OTHER_WEIGHTS, merge_lora


BASE_FOLDER = "base"  # in an adapter's folder: the model that it is for, where training made that


def merge_adapter(adapter: str | os.PathLike, base: str | os.PathLike | None = None, **kwargs) -> LlavaSTForConditionalGeneration:
    """
    The model of an adapter folder, with the adapter and all that was trained beside it merged into its base.

    Args:
        adapter: a PEFT folder that this package trained, or a stage folder of the released program (see `merge_lora`).
        base: folder or hub id of the model that the adapter is for. By default the folder `base` beside the adapter, or what its
            configuration names.
        kwargs: for `from_pretrained` of the base, such as `dtype`.

    Raises:
        FileNotFoundError: naming what the folder lacks.
        ValueError: naming the file, and the tensor that does not fit the base.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not os.path.isfile(os.path.join(adapter, name)):
            raise FileNotFoundError(f"{adapter} is no adapter folder: it has no {name}.")
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
        raise ValueError(f"{adapter}/{ADAPTER_CONFIG} does not name the model that the adapter is for; give it as `base`.")
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
    except (RuntimeError, IndexError) as error:  # another shape, or rows that the base does not have
        raise ValueError(f"The adapter {adapter} is not for {base}: {error}") from error
    # PEFT itself loads what fits and goes on.
    wanted = set(get_peft_model_state_dict(adapted))
    for names, problem in ((found - wanted, "holds {}, which has no place in"), (wanted - found, "has no {}, which is needed for")):
        if names:
            some = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise ValueError(f"The adapter {adapter} {problem.format(some)} {base}.")
    return adapted.merge_and_unload()
