# SPDX-License-Identifier: Apache-2.0
"""LLaVA-ST for transformers: says when something happens in a video, and where it is in every frame.

Importing the package registers its classes with transformers' Auto classes and `pipeline("video-grounding")`.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .deprecation import accept_moved_modules, renamed_attributes
from .exports import export
from .model.configuration_llava_st import LlavaSTConfig, LlavaSTOriginalConfig
from .model.downloads_llava_st import DownloadLimits
from .model.grounding_llava_st import MediaInfo, parse_answer
from .model.image_processing_llava_st import LlavaSTImageProcessor, load_image, original_size
from .model.modeling_llava_st import LlavaSTForConditionalGeneration, LlavaSTModel, LlavaSTPreTrainedModel
from .model.original_checkpoint_llava_st import register_original_checkpoint
from .model.pipeline_llava_st import VideoGroundingPipeline
from .model.processing_llava_st import LlavaSTProcessor
from .model.results_llava_st import Box, Event, Grounding, Span, Tubelet
from .model.video_processing_llava_st import LlavaSTVideoProcessor
from .model.video_reading_llava_st import read_video_metadata
from .shapes.demo_model import DEMO_MODEL_NOTICE, DEMO_MODEL_PATH
from .version import __version__ as __version__


def make_refinement(refine, device) -> Callable[..., Any]:
    """The function that `VideoGroundingPipeline` refines answers with; see `refinement.load` for the arguments."""
    from .refinement import load, refine_answer  # loads models of transformers that most users do not need

    return partial(refine_answer, refiner=load(refine, device=device))


AutoConfig.register(LlavaSTConfig.model_type, LlavaSTConfig)
AutoConfig.register(LlavaSTOriginalConfig.model_type, LlavaSTOriginalConfig)
AutoModel.register(LlavaSTConfig, LlavaSTModel)
AutoModelForImageTextToText.register(LlavaSTConfig, LlavaSTForConditionalGeneration)
AutoModelForMultimodalLM.register(LlavaSTConfig, LlavaSTForConditionalGeneration)
AutoImageProcessor.register(LlavaSTConfig, fast_image_processor_class=LlavaSTImageProcessor)
AutoVideoProcessor.register(LlavaSTConfig, LlavaSTVideoProcessor)
AutoProcessor.register(LlavaSTConfig, LlavaSTProcessor)
# `save_pretrained` and `push_to_hub` copy the code of classes that are registered in this way.
LlavaSTConfig.register_for_auto_class("AutoConfig")
LlavaSTModel.register_for_auto_class("AutoModel")
LlavaSTForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
LlavaSTImageProcessor.register_for_auto_class("AutoImageProcessor")
LlavaSTVideoProcessor.register_for_auto_class("AutoVideoProcessor")
LlavaSTProcessor.register_for_auto_class("AutoProcessor")
register_original_checkpoint()
accept_moved_modules()
# Functions that need the packages of an extra.
__getattr__ = renamed_attributes(sys.modules[__name__], lazy={"draw": "visualization"})
VideoGroundingPipeline.model_notices[DEMO_MODEL_PATH] = DEMO_MODEL_NOTICE
VideoGroundingPipeline.make_refinement = staticmethod(make_refinement)
PIPELINE_REGISTRY.register_pipeline(
    "video-grounding",
    pipeline_class=VideoGroundingPipeline,
    pt_model=AutoModelForImageTextToText,
    default={"model": (DEMO_MODEL_PATH, "main")},
    type="multimodal",
)

__all__ = [
    "DEMO_MODEL_PATH",
    "Box",
    "DownloadLimits",
    "Event",
    "Grounding",
    "LlavaSTConfig",
    "LlavaSTForConditionalGeneration",
    "LlavaSTImageProcessor",
    "LlavaSTModel",
    "LlavaSTPreTrainedModel",
    "LlavaSTProcessor",
    "LlavaSTVideoProcessor",
    "MediaInfo",
    "Span",
    "Tubelet",
    "VideoGroundingPipeline",
    "draw",
    "export",
    "load_image",
    "original_size",
    "parse_answer",
    "read_video_metadata",
]
