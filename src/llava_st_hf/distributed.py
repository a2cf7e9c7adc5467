# SPDX-License-Identifier: Apache-2.0
"""Layers that FSDP shards, and the orderly end of a run on several processes."""

import gc
import os

from accelerate import PartialState
from transformers import PreTrainedModel


_FSDP_LAYERS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # of accelerate and PEFT


def set_fsdp_layers(model: PreTrainedModel) -> None:
    """
    Names the decoder layers as the modules that FSDP shards, in the environment of this process, unless the configuration of accelerate
    names others. Without FSDP it does nothing. Call it before the trainer is created.

    Accelerate itself would take all of `_no_split_modules`, which also lists classes of the vision encoder that this model does not use.

    Args:
        model: or the `PeftModel` around it.

    Raises:
        ValueError: if the configuration names a class that the model does not contain.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP") != "TRANSFORMER_BASED_WRAP":
        return
    layers = sorted({type(layer).__name__ for layer in model.get_decoder().layers})
    given = os.environ.get(_FSDP_LAYERS)
    missing = set(given.split(",")) - {type(module).__name__ for module in model.modules()} if given else set()
    if missing:
        raise ValueError(
            f"fsdp_transformer_layer_cls_to_wrap names {', '.join(sorted(missing))}, which the model does not contain. Its decoder layers "
            f"are {', '.join(layers)}: remove this line from the configuration of accelerate to shard them."
        )
    if not given:
        os.environ[_FSDP_LAYERS] = ",".join(layers)


def shut_down_processes() -> None:
    """Waits until all processes of a run have called this, then destroys torch's process group.

    A process that exits while its peers still communicate makes them abort. Call it as the last statement of a program, outside of
    `finally`: after an exception the process must exit at once, so that the launcher ends the others, instead of waiting for them.
    The caller should hold no model or trainer anymore. Without several processes it does nothing.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    # A model in DistributedDataParallel is part of reference cycles and owns the process group: its threads run until it is collected, and
    # abort the process ("terminate called without an active exception") if a peer exits first.
    gc.collect()
