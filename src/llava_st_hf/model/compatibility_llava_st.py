# SPDX-License-Identifier: Apache-2.0
"""Checks that a model and a processor belong together, and that a server that builds the model does so with the plug-in."""

from .coordinates_llava_st import coordinate_token


_SHARED_OPTIONS = (
    "packer_spatial_stride",
    "packer_temporal_stride",
    "fast_spatial_stride",
    "use_downsample_image",
    "ignore_prompt_x_coordinates",
)


# Names that servers give the attention of their own: vLLM, SGLang, Text Generation Inference.
_SERVERS = {"vllm": "vLLM", "vllm_mla": "vLLM", "sglang": "SGLang", "tgi": "Text Generation Inference"}


def check_not_served_without_plugin(config) -> None:
    """
    Raises an error where a server builds the model by its general back end for models of transformers. Its answers would be wrong: it
    samples other frames, puts features one position away, and does not load the output embeddings that LAPE needs.

    Args:
        config: [`LlavaSTConfig`] of the model. The plug-in for vLLM sets its attribute `served_by_plugin`.

    Raises:
        ValueError: naming the server, and the package to install.
    """
    attention = config.text_config._attn_implementation
    if attention in _SERVERS and not config.served_by_plugin:
        server = _SERVERS[attention]
        advice = (
            "Install the plug-in in the environment of the server, pip install 'llava-st-hf[serve]', and start it with `llava-st serve`."
            if server == "vLLM"
            else "Serve it with vLLM and the plug-in of this package: pip install 'llava-st-hf[serve]', then `llava-st serve`."
        )
        raise ValueError(f"{server} would serve this LLaVA-ST model without its plug-in, and its answers would be wrong. {advice}")


def check_model_matches_processor(config, processor) -> None:
    """
    Raises an error for a model and a processor that disagree about numbers of tokens, token ids or image sizes. Generation with
    such a pair fails or returns meaningless text.

    Args:
        config: [`LlavaSTConfig`] of the model.
        processor: [`LlavaSTProcessor`].

    Raises:
        ValueError: listing every value that differs.
    """
    square = (config.vision_config.image_size,) * 2  # (height, width) in pixels
    has_coordinates = config.use_coordinate_tokens
    pairs = {
        "id of <TEMP-000>": (config.coordinate_start_token_id, processor.tokenizer.get_added_vocab().get(coordinate_token("temporal", 0))),
        "number of temporal bins": (config.num_temporal_bins if has_coordinates else 0, processor.num_temporal_bins),
        "number of spatial bins": (config.num_spatial_bins if has_coordinates else 0, processor.num_spatial_bins),
        "patch_size": (config.vision_config.patch_size, processor.patch_size),
        "image size": (square, _height_and_width(processor.image_processor.size)),
        "video size": (square, _height_and_width(processor.video_processor.size)),
    }
    pairs |= {name: (getattr(config, name), getattr(processor, name)) for name in _SHARED_OPTIONS}
    differing = [f"{name} is {model} in the model and {other} in the processor" for name, (model, other) in pairs.items() if model != other]
    if differing:
        raise ValueError(
            f"Model and processor do not belong together: {'; '.join(differing)}. Load both from the same checkpoint, or give the "
            "processor the values of the model's configuration."
        )


def _height_and_width(size) -> tuple[int | None, int | None]:
    return (size["height"], size["width"]) if size else (None, None)
