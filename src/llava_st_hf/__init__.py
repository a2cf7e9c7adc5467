# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST for transformers: says when something happens in a video, and where it is in every frame.

Importing the package registers its classes with transformers' Auto classes and `pipeline("video-grounding")`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
)

from .configuration_llava_st import LlavaSTConfig, LlavaSTReleasedConfig
from .modeling_llava_st import LlavaSTForConditionalGeneration, LlavaSTModel, LlavaSTPreTrainedModel
from .released_layout_llava_st import register_released_layout
from .version import __version__ as __version__


AutoConfig.register(LlavaSTConfig.model_type, LlavaSTConfig)
AutoConfig.register(LlavaSTReleasedConfig.model_type, LlavaSTReleasedConfig)
AutoModel.register(LlavaSTConfig, LlavaSTModel)
AutoModelForImageTextToText.register(LlavaSTConfig, LlavaSTForConditionalGeneration)
AutoModelForMultimodalLM.register(LlavaSTConfig, LlavaSTForConditionalGeneration)
register_released_layout()


