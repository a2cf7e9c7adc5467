# SPDX-License-Identifier: Apache-2.0
"""Rows of chat messages → a padded batch: media are decoded here, in the data loader's workers."""

from dataclasses import dataclass
from typing import Literal

import torch

from ..batch_feature_llava_st import join_samples
from ..image_processing_llava_st import MEDIA_ERRORS
from ..processing_llava_st import LlavaSTProcessor
from .labels import IGNORED, LabelScheme, make_labels


OnError = Literal["raise", "skip"]


@dataclass
class LlavaSTDataCollator:
    """
    Makes batches of videos, images and text, mixed as they come.

    Args:
        processor: of the model to be trained.
        label_scheme: which tokens are learned: see `make_labels`.
        on_error: what a sample that cannot be used does: "raise" stops the run; "skip" leaves it out of its batch, and the batch
            tells of it.
        max_length: longest sample in tokens, media included. A longer one cannot be used: cutting it would cut its media or its
            answer.
        pixel_dtype: of the pixels. A model that computes in half precision rounds them to it anyway, and half the bytes travel.
    """

    processor: LlavaSTProcessor
    label_scheme: LabelScheme = "assistant"
    on_error: OnError = "raise"
    max_length: int | None = None
    pixel_dtype: torch.dtype = torch.float32

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r} must be "raise" or "skip".')
        make_labels(torch.zeros(1, dtype=torch.long), torch.zeros(1), self.processor.tokenizer, self.label_scheme)  # refuses other schemes

    def __call__(self, rows: list[dict]) -> dict:
        """
        Args:
            rows: with `messages`, and `id`, `source` and `task` as far as known; see `llava_st_hf.data`.

        Returns:
            Model inputs with `labels`, padded on the right; `coordinates` where there are any; and for the trainer `tasks`, one
            name per sample, and `skipped`, why samples were left out. A batch of which nothing is left has one row without labels.

        Raises:
            ValueError: naming the sample and what is wrong with it, with `on_error="raise"`.
        """
        samples, tasks, skipped = [], [], []
        for row in rows:
            try:
                samples.append(self._encode(row))
                tasks.append(row.get("task") or "all")
            except MEDIA_ERRORS as error:
                problem = f"Sample {row.get('id')!r} of {row.get('source') or 'the data'}: {error}"
                if self.on_error == "raise":
                    raise ValueError(problem) from error
                skipped.append(problem)
        if not samples:
            nothing = torch.full((2,), self.processor.tokenizer.pad_token_id)
            samples.append({"input_ids": nothing, "labels": torch.full((2,), IGNORED)})
            tasks.append("all")
        batch = join_samples(samples, self.processor.tokenizer.pad_token_id, "right", self.pixel_dtype)
        return {**batch, "tasks": tasks, "skipped": skipped}

    def _encode(self, row: dict) -> dict[str, torch.Tensor]:
        """Model inputs of one sample, without a batch dimension at the text."""
        messages = [{**message, "content": _without_nulls(message.get("content"))} for message in row.get("messages") or ()]
        # Without tensors of the batch: making one copies each video once more.
        encoded = self.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        sample = {"input_ids": torch.tensor(encoded["input_ids"][0])}
        sample["labels"] = make_labels(
            sample["input_ids"], torch.tensor(encoded["assistant_masks"][0]), self.processor.tokenizer, self.label_scheme
        )
        if bool((sample["labels"] == IGNORED).all()):
            raise ValueError("it has no assistant message, so there is nothing to learn.")
        if self.max_length is not None and len(sample["input_ids"]) > self.max_length:
            raise ValueError(f"it has {len(sample['input_ids'])} tokens, more than max_length={self.max_length}.")
        if "coordinates" in encoded:
            sample["coordinates"] = torch.tensor(encoded["coordinates"][0])
        for name in ("pixel_values", "pixel_values_videos"):
            if name in encoded:
                pixels = encoded[name]
                sample[name] = pixels[0][None] if len(pixels) == 1 else torch.stack(list(pixels))
        return sample


def _without_nulls(content):
    """Content items without the keys that Arrow filled in."""
    if isinstance(content, str) or content is None:
        return content
    return [{key: value for key, value in item.items() if value is not None} for item in content]
