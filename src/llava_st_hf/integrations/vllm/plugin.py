# SPDX-License-Identifier: Apache-2.0
"""Registration of LLaVA-ST with vLLM, which calls `register` in each of its processes before it reads a configuration."""

import logging


ARCHITECTURE = "LlavaSTForConditionalGeneration"
_MODEL = "llava_st_hf.integrations.vllm.model:LlavaSTForVLLM"


def register() -> None:
    """
    Registers the model class by name, and LLaVA-ST's configuration and processors with transformers' Auto classes.

    The model class is imported where a LLaVA-ST model is served. If this package cannot be imported, the error is logged and nothing is
    registered, because vLLM calls this function for every model.
    """
    try:
        import llava_st_hf  # noqa: F401  # the import registers the Auto classes, which read config.json in every process
    except Exception:
        logging.getLogger("vllm.llava_st").exception("LLaVA-ST models cannot be served, because llava_st_hf cannot be imported:")
        return
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, _MODEL)
