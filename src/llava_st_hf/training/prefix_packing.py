# SPDX-License-Identifier: Apache-2.0
"""Packing of several conversations about one image or video into one sequence with a shared prefix.

The sequence is the shared prefix (system prompt and the tokens of the image or video), then the suffix of every conversation. A suffix
attends to the prefix and itself, and its position ids continue those of the prefix. So every token has the hidden state, and every weight
the gradient, of separate sequences.
"""

import torch

from ..model.batch_feature_llava_st import PADDING, SHARED
from ..model.processing_llava_st import LlavaSTProcessor
from .labels import IGNORED


def media_tokens_mask(input_ids: torch.Tensor, processor: LlavaSTProcessor) -> torch.Tensor:
    """Marks the tokens of images and videos.

    Args:
        input_ids: (sequence_length,)
        processor: whose media tokens are marked.

    Returns:
        (sequence_length,) booleans.
    """
    return torch.isin(input_ids, torch.tensor([*processor.image_token_ids, *processor.video_token_ids]))


def cut_suffix(sample: dict[str, torch.Tensor], prefix: dict[str, torch.Tensor], processor: LlavaSTProcessor) -> dict[str, torch.Tensor]:
    """
    Cuts off the prefix of a conversation.

    Args:
        sample: `input_ids`, `labels` and optionally `coordinate_values`, each (length,), with a single token for the image or video.
        prefix: `input_ids` of the shared prefix, (prefix_length,), with all tokens of the image or video at its end.
        processor: that made both.

    Returns:
        The names of `sample`, each (suffix_length,).

    Raises:
        ValueError: If the conversation does not begin with the prefix, or a token up to the first of the suffix has a label.
    """
    before = prefix["input_ids"][~media_tokens_mask(prefix["input_ids"], processor)]
    end = len(before) + 1
    places = media_tokens_mask(sample["input_ids"], processor).nonzero().flatten().tolist()
    if places != [end - 1] or not torch.equal(sample["input_ids"][: end - 1], before):
        raise ValueError(
            "its text before the image or video differs from that of the conversations packed with it (another system prompt, for "
            "example). Use one system prompt, or set max_conversations_per_sequence: 1."
        )
    if bool((sample["labels"][: end + 1] != IGNORED).any()):
        raise ValueError(
            "a token of the shared prefix, or the first after it, has a label; its loss would be counted once per conversation. Use "
            "loss_on: assistant, or set max_conversations_per_sequence: 1."
        )
    return {name: values[end:] for name, values in sample.items()}


def pack_conversations(prefix: dict[str, torch.Tensor], suffixes: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    Joins a shared prefix and the suffixes of conversations to one sequence.

    Args:
        prefix: `input_ids`, optionally `coordinate_values`, each (prefix_length,), and pixels.
        suffixes: `input_ids`, `labels` and optionally `coordinate_values`, each (suffix_length,).

    Returns:
        All of these, each (sequence_length,), with the pixels, `position_ids` and `segment_ids`: `SHARED` in the prefix, 0, 1, … in the
        suffixes.
    """
    parts = [{**prefix, "labels": torch.full_like(prefix["input_ids"], IGNORED)}, *suffixes]
    lengths = [len(part["input_ids"]) for part in parts]
    positions = [torch.arange(lengths[0]), *(torch.arange(lengths[0], lengths[0] + length) for length in lengths[1:])]
    joined = {name: values for name, values in prefix.items() if name not in ("input_ids", "coordinate_values")}
    joined |= {name: torch.cat([part[name] for part in parts]) for name in ("input_ids", "labels")}
    if any("coordinate_values" in part for part in parts):
        values = [part.get("coordinate_values", torch.full((length,), torch.nan)) for part, length in zip(parts, lengths, strict=True)]
        joined["coordinate_values"] = torch.cat(values)
    joined["position_ids"] = torch.cat(positions)
    joined["segment_ids"] = torch.arange(SHARED, len(suffixes)).repeat_interleave(torch.tensor(lengths))
    return joined


def number_segments(samples: list[dict[str, torch.Tensor]]) -> None:
    """Gives all samples of a batch `position_ids` and `segment_ids`, in place, and makes the segment ids of the batch unique.

    Args:
        samples: packed or single conversations, with `input_ids` of shape (length,).
    """
    first = 0
    for sample in samples:
        if "segment_ids" in sample:
            sample["segment_ids"] = torch.where(sample["segment_ids"] == SHARED, SHARED, sample["segment_ids"] + first)
        else:
            sample["position_ids"] = torch.arange(len(sample["input_ids"]))
            sample["segment_ids"] = torch.full_like(sample["input_ids"], first)
        first = int(sample["segment_ids"].max()) + 1


def block_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """
    Computes which tokens attend to which.

    Args:
        segment_ids: (batch_size, sequence_length) number of the conversation, `SHARED` or `PADDING`.

    Returns:
        (batch_size, 1, sequence_length, sequence_length) booleans, True where the token of the third axis attends to that of the last.
        Padding attends to padding, since the output of a token without any key would be NaN.
    """
    queries, keys = segment_ids[:, None, :, None], segment_ids[:, None, None, :]
    visible = (queries == keys) | ((keys == SHARED) & (queries != PADDING))
    return visible.tril_()


def packed_attention_mask(segment_ids: torch.Tensor, attn_implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """
    Computes the `attention_mask` of packed conversations in the form that transformers' attention functions take.

    Args:
        segment_ids: (batch_size, sequence_length), as the collator returns them.
        attn_implementation: `"sdpa"` or `"eager"`, of the decoder.
        dtype: in which the decoder computes.

    Returns:
        (batch_size, 1, sequence_length, sequence_length): booleans for SDPA, values to add to the attention scores for eager attention.

    Raises:
        ValueError: For other implementations, which do not take a mask of this shape.
    """
    visible = block_mask(segment_ids)
    if attn_implementation == "sdpa":
        return visible
    if attn_implementation != "eager":
        raise ValueError(f'attn_implementation must be "sdpa" or "eager" with packed conversations, got {attn_implementation!r}.')
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
