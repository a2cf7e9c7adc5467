# SPDX-License-Identifier: Apache-2.0
"""Command line of vLLM's server for a checkpoint."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import GenerationConfig

from ..model.configuration_llava_st import LlavaSTConfig
from ..model.processing_llava_st import LlavaSTProcessor
from .checks import is_loopback


# Tokens of a prompt template and its question, and of a short answer, at least.
TEXT_TOKENS, ANSWER_TOKENS = 200, 56
# A domain that cannot exist (RFC 2606): vLLM reads an empty list of domains as "all".
NO_DOMAIN = "no-domain-is-allowed.invalid"
CONNECTOR = "llava_st"  # name of our reader of media, in vLLM's registry
_MIDDLEWARE = ("llava_st_hf.serving.vllm_middleware.UploadLimit", "llava_st_hf.serving.vllm_middleware.StartupCheck")
# Flags of vLLM that are options of `llava-st serve` → the option; and flags that start a server without the check of its answers.
_OWN_FLAGS = {
    "host": "--host",
    "port": "--port",
    "dtype": "--dtype",
    "model": "the argument CHECKPOINT",
    "served-model-name": "--name",
    "max-model-len": "--max-model-len",
    "allowed-media-domains": "--media-domain",
    "allowed-local-media-path": "--media-folder",
    "limit-mm-per-prompt": "--max-images and --max-videos",
    "enable-prompt-embeds": "--prompt-embeds",
    "no-enable-prompt-embeds": "--no-prompt-embeds",
}
_UNCHECKED_FLAGS = ("grpc", "headless", "config", "uds")
_REVISION, _SAMPLING, _PROCESSOR_OPTIONS = "revision", "override-generation-config", "mm-processor-kwargs"


@dataclass(frozen=True)
class ServerOptions:
    """
    Options of the server.

    Args:
        name: of the model in requests; None for the checkpoint as it was given.
        host, port: address to listen on.
        dtype: of the weights; None and "auto" for that of the checkpoint.
        max_model_len: largest number of tokens of a prompt and its answer; None for that of the checkpoint's decoder.
        max_images, max_videos: in a request.
        media_domains: hosts from which the server downloads media. None is allowed unless it is listed.
        media_folder: folder from which the server reads `file://` URLs.
        prompt_embeds: whether requests may contain embeddings, with which the client sends exact positions. None: if only this computer
            can connect, because vLLM does not check them enough for untrusted clients, and the checkpoint has a row for their token.
    """

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str | None = None
    max_model_len: int | None = None
    max_images: int = 1
    max_videos: int = 1
    media_domains: Sequence[str] = ()
    media_folder: str | None = None
    prompt_embeds: bool | None = None


def tokens_of_media(processor: LlavaSTProcessor) -> tuple[int, int]:
    """Numbers of tokens of an image, and of a video with the processor's number of frames."""
    size = processor.video_processor.size
    video = (processor.video_processor.num_frames, size["height"], size["width"])
    counts = processor._get_num_multimodal_tokens(image_sizes=[(size["height"], size["width"])], video_sizes=[video])
    return counts.num_image_tokens[0], counts.num_video_tokens[0]


def vllm_arguments(
    checkpoint: str, folder: str, config: LlavaSTConfig, processor: LlavaSTProcessor, options: ServerOptions, flags: Sequence[str]
) -> list[str]:
    """
    Builds the arguments of `vllm serve`.

    Args:
        checkpoint: as the user gave it, which is the default name of the model.
        folder: of the checkpoint.
        config, processor: of the checkpoint.
        options: of the server.
        flags: further flags of vLLM. They come last, and replace flags of the same name.

    Raises:
        ValueError: if `flags` contain one that is an option here, or one with which answers would not be checked; if a prompt with the
            images or videos of a request does not fit into the model's length; for a host of media that is no name; if there is no row for
            the token of embeddings.
    """
    sampling = _sampling(folder)
    _check_flags(flags, is_greedy=bool(sampling))
    text = config.text_config
    length = text.max_position_embeddings if options.max_model_len is None else options.max_model_len
    image, video = tokens_of_media(processor)
    media = max(image * options.max_images, video * options.max_videos)
    if length < media + TEXT_TOKENS + ANSWER_TOKENS:
        raise ValueError(
            f"A length of {length} tokens (--max-model-len) is too small: --max-images {options.max_images} ({image} tokens each) or "
            f"--max-videos {options.max_videos} ({video} each) with a question and a short answer take "
            f"{media + TEXT_TOKENS + ANSWER_TOKENS}. The decoder allows {text.max_position_embeddings}."
        )
    if length > text.max_position_embeddings:
        raise ValueError(f"--max-model-len {length} is more than the {text.max_position_embeddings} tokens of the decoder.")
    for domain in options.media_domains:
        if not re.fullmatch(r"[\w.-]+|\[[\w:.]+\]", domain):
            raise ValueError(
                f"--media-domain {domain} must be the name of a host, such as media.example.org, without scheme, port and path."
            )
    domains = [domain.lower() for domain in options.media_domains] or [NO_DOMAIN]
    arguments = [
        folder,
        *("--served-model-name", options.name or checkpoint),
        *("--host", options.host, "--port", str(options.port)),
        *("--dtype", _dtype(config, options.dtype)),
        *("--max-model-len", str(length)),
        *("--limit-mm-per-prompt", json.dumps({"image": options.max_images, "video": options.max_videos})),
        *sampling,
        *("--allowed-media-domains", *domains),
        *(() if options.media_folder is None else ("--allowed-local-media-path", options.media_folder)),
        *(("--enable-prompt-embeds",) if _takes_embeddings(checkpoint, config, processor, options) else ()),
        *(part for name in _MIDDLEWARE for part in ("--middleware", name)),
    ]
    return [*arguments, *flags]


def _dtype(config: LlavaSTConfig, dtype: str | None) -> str:
    """vLLM's own "auto" serves a float32 checkpoint in 16 bits."""
    if dtype not in (None, "auto"):
        return dtype
    stored = config.dtype if config.dtype is not None else config.text_config.dtype
    return "bfloat16" if stored is None else str(stored).removeprefix("torch.")


def _sampling(folder: str) -> list[str]:
    """vLLM's own default is sampling at temperature 1, also where `generate` decodes greedily."""
    try:
        samples = GenerationConfig.from_pretrained(folder).do_sample
    except OSError:  # the checkpoint has no generation configuration
        samples = False
    return [] if samples else [f"--{_SAMPLING}", json.dumps({"temperature": 0})]


def _takes_embeddings(checkpoint: str, config: LlavaSTConfig, processor: LlavaSTProcessor, options: ServerOptions) -> bool:
    """Whether requests may contain embeddings. vLLM adds a token for them to the tokenizer, whose id must be a row of the matrices."""
    has_row = len(processor.tokenizer) < config.text_config.vocab_size
    if options.prompt_embeds and not has_row:
        raise ValueError(
            f"--prompt-embeds needs a row of the embedding matrix beside those of the tokens, and {checkpoint} has "
            f"{len(processor.tokenizer)} of each. Convert it again with `llava-st convert {checkpoint} FOLDER`, which adds rows."
        )
    return has_row and is_loopback(options.host) if options.prompt_embeds is None else options.prompt_embeds


def _check_flags(flags: Sequence[str], is_greedy: bool) -> None:
    for flag, following in pairwise([*flags, ""]):
        found = re.match(r"--([\w-]+)", flag)
        if not found:
            continue
        name = found[1].replace("_", "-")
        for known in (*_OWN_FLAGS, *_UNCHECKED_FLAGS, _REVISION, _SAMPLING, _PROCESSOR_OPTIONS):
            if known.startswith(name) and known != name and name not in _OWN_FLAGS:
                raise ValueError(f"--{name} may be an abbreviation of --{known}. Write flags of vLLM in full.")
        if name in _OWN_FLAGS:
            raise ValueError(f"{flag} after `--` is not passed to vLLM: use {_OWN_FLAGS[name]} of `llava-st serve`.")
        if name in _UNCHECKED_FLAGS:
            raise ValueError(
                f"--{name} of vLLM cannot be used with `llava-st serve`, which checks the answers of an HTTP server on a TCP port, whose "
                "flags are all on the command line."
            )
        if name == _REVISION:
            raise ValueError(
                f"--{name} has no effect on a folder, and `llava-st serve` gives vLLM the folder of the checkpoint. Download the revision "
                "(`hf download ID --revision REVISION --local-dir FOLDER`), then serve FOLDER."
            )
        # The value is JSON in the same argument or in the next one, or the key is part of the name.
        value = f"{flag} {following}"
        if name == _SAMPLING and is_greedy and "temperature" not in value:
            raise ValueError(
                f"--{name} replaces the default temperature 0 of `llava-st serve`, without which vLLM samples at temperature 1. Add a "
                '"temperature" to its value.'
            )
        if name == _PROCESSOR_OPTIONS and (sampling := re.search(r"num_frames|fps", value)):
            raise ValueError(
                f"--mm-processor-kwargs with {sampling[0]} samples other frames than those with which the checkpoint's answer is "
                'checked. Save a copy of the checkpoint whose processor samples them (docs/serving.md, "Number of frames").'
            )
