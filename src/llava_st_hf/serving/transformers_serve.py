# SPDX-License-Identifier: Apache-2.0
"""Launcher of `transformers serve`, whose program refuses classes from outside.

    python -m llava_st_hf.serving.transformers_serve CHECKPOINT [OPTIONS OF transformers serve]

docs/serving.md lists what this server does not do.
"""

import json
import sys

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..model.configuration_llava_st import LlavaSTConfig
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from .checks import check_folder


_USAGE = "python -m llava_st_hf.serving.transformers_serve CHECKPOINT [OPTIONS OF transformers serve]"
# Continuous batching passes no media to the model; the other option is set here.
_REFUSED = ("--continuous-batching", "--chat-template-kwargs")


def arguments(argv: list[str]) -> list[str]:
    """
    Arguments of the program `transformers` for a checkpoint and further options.

    Args:
        argv: the checkpoint, then options of `transformers serve`.

    Raises:
        ValueError: without a checkpoint, for an option that is not supported, and for a checkpoint that cannot be served.
        OSError: if there is no such folder.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError(f"The checkpoint is missing. Usage: {_USAGE}.")
    checkpoint, *options = argv
    for option in options:
        if option.partition("=")[0] in _REFUSED:
            raise ValueError(f"{option} of `transformers serve` is not supported for LLaVA-ST.")
    folder = check_folder(checkpoint)
    # Its own default is 32 frames for every model.
    frames = LlavaSTProcessor.from_pretrained(folder).video_processor.num_frames
    return ["serve", folder, "--chat-template-kwargs", json.dumps({"num_frames": frames}), *options]


def register() -> None:
    """Adds the model class to what `transformers serve` looks up by name: the library's module and the list of vision-language models."""
    name = LlavaSTForConditionalGeneration.__name__
    setattr(transformers, name, LlavaSTForConditionalGeneration)
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[LlavaSTConfig.model_type] = name


def main() -> None:
    try:
        argv = arguments(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"transformers_serve: {error}")
    register()
    from transformers.cli.transformers import main as run

    sys.argv = ["transformers", *argv]
    run()


if __name__ == "__main__":
    main()
