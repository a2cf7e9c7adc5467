# SPDX-License-Identifier: Apache-2.0
"""Registration of LLaVA-ST with vLLM, which calls `register` in each of its processes before it reads a configuration."""

ARCHITECTURE = "LlavaSTForConditionalGeneration"
_MODEL = "llava_st_hf.integrations.vllm.model:LlavaSTForVLLM"


def register() -> None:
    """
    Registers the model class by name; it is imported where a LLaVA-ST model is served.

    The import of `llava_st_hf`, which precedes that of this module, registers the configuration and the processors with transformers' Auto
    classes, which vLLM reads `config.json` with in every process. If it fails, vLLM logs the error and serves other models.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, _MODEL)
