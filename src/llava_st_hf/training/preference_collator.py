# SPDX-License-Identifier: Apache-2.0
"""Data collator of preference rows for TRL's DPOTrainer, with images and videos in the messages."""

from dataclasses import dataclass, field

import torch

from ..data.grouping import opening
from ..model.batch_feature_llava_st import join_samples
from ..model.media_files_llava_st import MEDIA_ERRORS
from ..model.processing_llava_st import LlavaSTProcessor
from .collator import LlavaSTDataCollator
from .labels import IGNORED
from .prefix_packing import cut_suffix, pack_conversations


@dataclass
class LlavaSTPreferenceCollator:
    """
    Makes batches for `trl.DPOTrainer`, whose own collator takes images from the column `images` only.

    Args:
        processor: of the model to be trained.
        max_length: longest sequence in tokens, media included; a longer one is an error, since cutting it would cut its media or answer.
        pixel_dtype: of the pixels.
        processor_kwargs: of each call of the processor, such as `video_backend`.
    """

    processor: LlavaSTProcessor
    max_length: int | None = None
    pixel_dtype: torch.dtype = torch.float32
    processor_kwargs: dict = field(default_factory=dict)

    def __post_init__(self):
        self._collator = LlavaSTDataCollator(self.processor, max_length=self.max_length, processor_kwargs=self.processor_kwargs)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: with `prompt`, `chosen` and `rejected`, lists of chat messages; each of the last two has one assistant message.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` of shape (2 * rows, sequence_length), chosen answers first, padded on the
            right; pixels, once for each sequence; and `coordinate_values` if a prompt has any. Coordinates of answers have none: their
            inputs are bins, as in generation.

        Raises:
            ValueError: naming the row that cannot be used, by its `id` or else its place in the batch, and the reason.
        """
        pairs = []
        for place, row in enumerate(rows):
            try:
                pairs.append(self._encode_pair(row))
            except MEDIA_ERRORS as error:
                raise ValueError(f"The preference row {row.get('id', place)!r}: {error}") from error
        samples = [pair[number] for number in (0, 1) for pair in pairs]
        batch = join_samples(samples, self.processor.tokenizer.pad_token_id, "right", self.pixel_dtype)
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        if "coordinate_values" in batch:
            batch["coordinate_values"] = batch["coordinate_values"].masked_fill(batch["completion_mask"] == 1, float("nan"))
        return batch

    def _encode_pair(self, row: dict) -> list[dict[str, torch.Tensor]]:
        """Returns the model inputs of prompt with chosen, and of prompt with rejected answer; one image or video is decoded once."""
        missing = [name for name in ("prompt", "chosen", "rejected") if not isinstance(row.get(name), list)]
        if missing:
            raise ValueError(f"{', '.join(missing)} must be lists of chat messages.")
        for name in ("chosen", "rejected"):
            roles = [message.get("role") for message in row[name]]
            if roles != ["assistant"]:
                raise ValueError(f"{name} must be one assistant message, got messages of the roles {roles}.")
        prefix, processor = None, self.processor
        if opening(row["prompt"]) is not None:
            prefix, processor = self._collator._encode_prefix(row["prompt"])
        pair = []
        for name in ("chosen", "rejected"):
            sample, _ = self._collator._encode(processor, [*row["prompt"], *row[name]])
            if prefix is not None:
                sample = pack_conversations(prefix, [cut_suffix(sample, prefix, processor)])
                del sample["position_ids"], sample["segment_ids"]  # those of a single conversation are the default
            self._collator._check_length(sample)
            start = int((sample["input_ids"] == self._turn_start).nonzero()[-1])  # of the answer; the prompt may have other answers
            sample["labels"][:start] = IGNORED
            pair.append(sample)
        return pair

    @property
    def _turn_start(self) -> int:
        return self.processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
