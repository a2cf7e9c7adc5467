# SPDX-License-Identifier: Apache-2.0
"""Several conversations about one medium as one sequence, in which none sees another.

The sequence begins with what all share, up to and including the medium's tokens; the remainders follow one behind the other. Each
remainder sees the shared part and itself, and its positions go on from the end of the shared part. So every token has the
hidden state, and every weight the gradient, that separate sequences would have given it.
"""

import torch

from ..model.batch_feature_llava_st import PADDING, SHARED
from ..model.processing_llava_st import LlavaSTProcessor
from .labels import IGNORED


def medium_mask(input_ids: torch.Tensor, processor: LlavaSTProcessor) -> torch.Tensor:
    """Which tokens stand for a medium; (sequence_length,) both."""
    return torch.isin(input_ids, torch.tensor([*processor.image_token_ids, *processor.video_token_ids]))


def remainder(sample: dict[str, torch.Tensor], shared: dict[str, torch.Tensor], processor: LlavaSTProcessor) -> dict[str, torch.Tensor]:
    """
    What a conversation has behind its medium.

    Args:
        sample: `input_ids`, `labels` and perhaps `coordinates` of a processor that writes one token for the medium, each (length,).
        shared: `input_ids` of the shared part, (shared_length,), with all tokens of the medium at its end.
        processor: that made both.

    Returns:
        The same names as `sample`.

    Raises:
        ValueError: where the conversation does not begin with the shared part, or something is learned where it is not alone.
    """
    before = shared["input_ids"][~medium_mask(shared["input_ids"], processor)]
    end = len(before) + 1
    places = medium_mask(sample["input_ids"], processor).nonzero().flatten().tolist()
    if places != [end - 1] or not torch.equal(sample["input_ids"][: end - 1], before):
        raise ValueError("it does not begin as the other conversations about this medium.")
    if bool((sample["labels"][: end + 1] != IGNORED).any()):
        raise ValueError("something is learned up to the first token behind the medium, which conversations about it share.")
    return {name: values[end:] for name, values in sample.items()}


def join_conversations(shared: dict[str, torch.Tensor], remainders: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """
    One sequence of a shared part and what conversations have behind it.

    Args:
        shared: `input_ids`, perhaps `coordinates`, each (shared_length,), and pixels.
        remainders: `input_ids`, `labels` and perhaps `coordinates`, each (length,).

    Returns:
        All of these, each (sequence_length,), with the pixels and with `position_ids` and `segments`.
    """
    parts = [{**shared, "labels": torch.full_like(shared["input_ids"], IGNORED)}, *remainders]
    lengths = [len(part["input_ids"]) for part in parts]
    positions = [torch.arange(lengths[0]), *(torch.arange(lengths[0], lengths[0] + length) for length in lengths[1:])]
    joined = {name: values for name, values in shared.items() if name not in ("input_ids", "coordinates")}
    joined |= {name: torch.cat([part[name] for part in parts]) for name in ("input_ids", "labels")}
    if any("coordinates" in part for part in parts):
        exact = [part.get("coordinates", torch.full((length,), torch.nan)) for part, length in zip(parts, lengths, strict=True)]
        joined["coordinates"] = torch.cat(exact)
    joined["position_ids"] = torch.cat(positions)
    joined["segments"] = torch.arange(SHARED, len(remainders)).repeat_interleave(torch.tensor(lengths))
    return joined


def number_segments(samples: list[dict[str, torch.Tensor]]) -> None:
    """Gives all samples of a batch `position_ids` and `segments`, and numbers the segments through, from sample to sample."""
    first = 0
    for sample in samples:
        if "segments" in sample:
            sample["segments"] = torch.where(sample["segments"] == SHARED, SHARED, sample["segments"] + first)
        else:
            sample["position_ids"] = torch.arange(len(sample["input_ids"]))
            sample["segments"] = torch.full_like(sample["input_ids"], first)
        first = int(sample["segments"].max()) + 1


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    """
    Which tokens see which.

    Args:
        segments: (batch_size, sequence_length) number of the conversation, `SHARED` or `PADDING`.

    Returns:
        (batch_size, 1, sequence_length, sequence_length) booleans, True where the token of the third axis sees that of the last.
        Padding sees padding, as a token that sees nothing would become NaN.
    """
    queries, keys = segments[:, None, :, None], segments[:, None, None, :]
    visible = (queries == keys) | ((keys == SHARED) & (queries != PADDING))
    return visible.tril_()
