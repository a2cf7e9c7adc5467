# SPDX-License-Identifier: Apache-2.0
"""Prompts about the same image or video: it is encoded once, and the keys and values of its tokens are copied to each prompt.

In the prompts of the chat template the image or video comes before the question. All tokens up to its end, the prefix, are equal for all
questions about it, and so are their keys and values in the decoder. They are computed once for each different prefix of a batch, and
kept for the next batch or for a session. `generate` then continues from them.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from uuid import uuid4

import torch
from transformers import DynamicCache

from .batch_feature_llava_st import join_samples
from .cache_name_llava_st import CACHE_NAME, CACHE_NAMES


PIXELS = ("pixel_values", "pixel_values_videos")
_TEXT = ("input_ids", "coordinate_values")
# Arguments of `generate` with which it does not continue from a cache that holds a part of the prompt.
_OTHER_CACHES = (*CACHE_NAMES, "assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


@dataclass(frozen=True)
class PromptPrefix:
    """
    The tokens of a prompt up to the end of its last image or video.

    Args:
        key: equal for prompts with the same media and the same tokens up to there.
        length: number of tokens; 0 for a prompt without media.
        num_images, num_videos: number of entries in `pixel_values` and `pixel_values_videos`.
    """

    key: Hashable
    length: int
    num_images: int = 0
    num_videos: int = 0


def prompt_prefix(sample: dict[str, torch.Tensor], medium: str | None, media_token_ids: list[int]) -> PromptPrefix:
    """
    Determines the prefix of a prompt.

    Args:
        sample: output of the processor for one prompt.
        medium: identifies the media of the prompt; None if they are those of this prompt alone.
        media_token_ids: ids of all tokens of images and videos.
    """
    ids = sample["input_ids"].flatten()  # (length,)
    places = torch.isin(ids, torch.tensor(media_token_ids, device=ids.device)).nonzero()
    length = int(places[-1]) + 1 if len(places) else 0
    counts = [len(sample[name]) if name in sample else 0 for name in PIXELS]
    return PromptPrefix((medium or uuid4().hex, *tokens_key(sample, length)), length, *counts)


def tokens_key(sample: dict[str, torch.Tensor], length: int) -> tuple[bytes, bytes]:
    """The first `length` token ids of a prompt, and its exact coordinates among them, as values that can be compared."""
    ids, values = (tensor[:length].cpu().numpy().tobytes() for tensor in _ids_and_values(sample))
    return ids, values


def common_length(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> int:
    """Number of tokens at the beginning that two prompts have in common, with the same exact coordinates."""
    length = min(first["input_ids"].numel(), second["input_ids"].numel())
    different = torch.zeros(length, dtype=torch.bool)
    for one, other in zip(_ids_and_values(first), _ids_and_values(second), strict=True):
        different |= one[:length].cpu() != other[:length].cpu()
    return int(different.long().argmax()) if different.any() else length


def _ids_and_values(sample: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and exact coordinates of a prompt, of shape `(length,)`, with -1 for tokens without an exact value."""
    ids = sample["input_ids"].flatten()
    values = (
        sample["coordinate_values"].flatten().float().nan_to_num(-1.0) if "coordinate_values" in sample else torch.full(ids.shape, -1.0)
    )
    return ids, values


def join_prompts(samples: list[dict[str, torch.Tensor]], prefixes: list[PromptPrefix], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads prompts to a batch as `join_samples` does, with the pixels of each different prefix once, in the order of its first prompt."""
    seen: set[Hashable] = set()
    rows = []
    for sample, prefix in zip(samples, prefixes, strict=True):
        rows.append({name: tensor for name, tensor in sample.items() if name not in PIXELS or prefix.key not in seen})
        seen.add(prefix.key)
    return join_samples(rows, pad_token_id, "left")


class PrefixStates:
    """
    Keys and values of the tokens at the beginning of a prompt.

    Args:
        layers: for each layer of the decoder its keys and values, each of shape `(num_heads, num_tokens, head_dim)`.
    """

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]]):
        self.layers = layers

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.layers[0][0].shape[1]

    @classmethod
    def from_cache(cls, cache: DynamicCache, row: int, places: torch.Tensor) -> "PrefixStates":
        """Copies the states of one row at the positions `places`, of shape `(num_tokens,)`, out of a cache."""

        def pick(states: torch.Tensor) -> torch.Tensor:
            return states[row].index_select(1, places.to(states.device))

        return cls([(pick(layer.keys), pick(layer.values)) for layer in cache.layers])


class KeptPrefix:
    """The states of the prefix of the last prompt of a batch, for prompts of the next one that begin with it."""

    def __init__(self):
        self.states: dict[Hashable, PrefixStates] = {}

    def update(self, inputs: dict, prefixes: list[PromptPrefix], num_beams: int = 1) -> None:
        """
        Keeps the prefix of the last prompt and frees the one kept so far.

        Args:
            inputs: what `prompts_for_generate` returned; its cache holds the prompts.
            prefixes: of the prompts.
            num_beams: number of rows of the cache for each prompt.
        """
        last = prefixes[-1]
        if last.key in self.states:
            self.states = {last.key: self.states[last.key]}
            return
        places = inputs["attention_mask"][-1].nonzero().flatten()[: last.length]
        self.states = {last.key: PrefixStates.from_cache(inputs[CACHE_NAME], -num_beams, places)} if last.length else {}


def can_share(model, setting: Callable[[str], object]) -> bool:
    """
    Whether `generate` can continue from the states of a prefix: with the default cache, which it fills by itself.

    Args:
        model: its decoder must attend to all earlier tokens in every layer.
        setting: returns the value of an argument of `generate`, None where it is not set.
    """
    layer_types = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return (
        set(layer_types) <= {"full_attention"}
        and setting("use_cache") is not False
        and setting("cache_implementation") in (None, "dynamic")
        and all(setting(name) is None for name in _OTHER_CACHES)
    )


def prompts_for_generate(
    model,
    inputs: dict[str, torch.Tensor],
    prefixes: list[PromptPrefix],
    kept: KeptPrefix | None = None,
    num_beams: int = 1,
    vision_chunk_size: int | None = None,
) -> dict:
    """
    Encodes the prefixes that several prompts of a batch have in common, or that are kept, and returns the inputs of `generate`.

    A batch without such prompts is returned as it is, for `generate` to encode as a whole.

    Args:
        model: [`LlavaSTForConditionalGeneration`].
        inputs: output of `join_prompts`, on the device of the model.
        prefixes: of the prompts.
        kept: states of prefixes that need not be computed. Then the inputs have a cache, which `kept.update` reads after generation.
        num_beams: number of rows of the cache for each prompt.
        vision_chunk_size: frames per pass of the vision encoder.

    Returns:
        `input_ids`, `attention_mask` and `coordinate_values` of shape `(batch_size, longest prefix + longest rest)`, each of the two parts
        padded on the left, and the cache with the states of the first part.
    """
    known = {} if kept is None else kept.states
    keys = [prefix.key for prefix in prefixes]
    if len(set(keys)) == len(keys) and known.keys().isdisjoint(keys):
        return inputs if kept is None else {**inputs, CACHE_NAME: DynamicCache(config=model.config)}
    first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
    missing = [row for row in sorted(first.values()) if prefixes[row].length]
    states = {**known, **encode_prefixes(model, inputs, prefixes, missing, vision_chunk_size)}
    return _continued(model, inputs, prefixes, states, num_beams)


@torch.no_grad()
def encode_prefixes(
    model, inputs: dict[str, torch.Tensor], prefixes: list[PromptPrefix], rows: list[int], vision_chunk_size: int | None = None
) -> dict[Hashable, PrefixStates]:
    """
    Computes the states of the prefixes of some prompts of a batch, with one pass of the vision encoder and one of the decoder.

    Args:
        inputs, prefixes: as of `prompts_for_generate`.
        rows: indices of the prompts, no two with the same prefix.

    Returns:
        The states by the keys of the prefixes.
    """
    if not rows:
        return {}
    batch = _padded([_part(inputs, row, slice(prefixes[row].length)) for row in rows], inputs["input_ids"].device)
    batch |= _pixels(inputs, prefixes, rows)
    # `generate` counts positions like this, too.
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    model(**batch, use_cache=True, logits_to_keep=1, vision_chunk_size=vision_chunk_size, **{CACHE_NAME: cache})
    longest = batch["input_ids"].shape[1]
    return {
        prefixes[row].key: PrefixStates.from_cache(cache, number, torch.arange(longest - prefixes[row].length, longest))
        for number, row in enumerate(rows)
    }


def repeat_pixels(inputs: dict[str, torch.Tensor], prefixes: list[PromptPrefix]) -> dict[str, torch.Tensor]:
    """The inputs with the pixels of every prompt, for `generate` to encode each prompt as a whole."""
    if len({prefix.key for prefix in prefixes}) == len(prefixes):
        return inputs
    return {**inputs, **_pixels(inputs, prefixes, range(len(prefixes)))}


def _pixels(inputs: dict[str, torch.Tensor], prefixes: list[PromptPrefix], rows) -> dict[str, torch.Tensor]:
    """The pixels of the prompts `rows`; `inputs` contains those of each different prefix once."""
    distinct = list({prefix.key: prefix for prefix in prefixes}.values())
    found = {}
    for name, counts in zip(PIXELS, ([p.num_images for p in distinct], [p.num_videos for p in distinct]), strict=True):
        if name not in inputs:
            continue
        parts = dict(zip((prefix.key for prefix in distinct), inputs[name].split(counts), strict=True))
        chosen = [parts[prefixes[row].key] for row in rows]
        if any(map(len, chosen)):
            found[name] = torch.cat(chosen)
    return found


def _part(inputs: dict[str, torch.Tensor], row: int, tokens: slice) -> dict[str, torch.Tensor]:
    """Some of the tokens of one prompt, counted without padding."""
    own = inputs["attention_mask"][row].bool()
    return {name: inputs[name][row][own][tokens] for name in _TEXT if name in inputs}


def _padded(samples: list[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in join_samples(samples, 0, "left").items()}


def _continued(model, inputs, prefixes: list[PromptPrefix], states: dict[Hashable, PrefixStates], num_beams: int) -> dict:
    """Inputs of `generate` with the states of all prefixes in a cache."""
    device, rows = inputs["input_ids"].device, range(len(prefixes))
    begin = _padded([_part(inputs, row, slice(prefixes[row].length)) for row in rows], device)
    rest = _padded([_part(inputs, row, slice(prefixes[row].length, None)) for row in rows], device)
    joined: dict = {name: torch.cat((begin[name], rest[name]), dim=1) for name in begin}
    longest = begin["input_ids"].shape[1]
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(next(iter(states.values())).layers):
        pair = []
        for side, like in enumerate(layer):
            joint = like.new_zeros(len(prefixes), like.shape[0], longest, like.shape[2])  # (batch, heads, prefix, head_dim)
            for row, prefix in enumerate(prefixes):
                if prefix.length:
                    joint[row, :, longest - prefix.length :] = states[prefix.key].layers[index][side][:, : prefix.length]
            pair.append(joint.repeat_interleave(num_beams, 0) if num_beams > 1 else joint)
        cache.update(*pair, index)
    return {**joined, CACHE_NAME: cache}
