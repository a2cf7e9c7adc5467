# SPDX-License-Identifier: Apache-2.0
"""Rows of chat messages → a padded batch: media are decoded here, in the data loader's workers."""

from dataclasses import dataclass
from typing import Literal

import torch

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
            except (ValueError, OSError) as error:
                problem = f"Sample {row.get('id')!r} of {row.get('source') or 'the data'}: {error}"
                if self.on_error == "raise":
                    raise ValueError(problem) from error
                skipped.append(problem)
        if not samples:
            nothing = torch.full((2,), self.processor.tokenizer.pad_token_id)
            samples.append({"input_ids": nothing, "labels": torch.full((2,), IGNORED)})
            tasks.append("all")
        return {**self._pad(samples), "tasks": tasks, "skipped": skipped}

    def _encode(self, row: dict) -> dict[str, torch.Tensor]:
        """Model inputs of one sample, without a batch dimension at the text."""
        messages = [
            {
                "role": message["role"],
                # Arrow fills the keys that an item does not have.
                "content": [{key: value for key, value in item.items() if value is not None} for item in message["content"]],
            }
            for message in row["messages"]
        ]
        encoded = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
        )
        sample = {"input_ids": encoded["input_ids"][0]}
        sample["labels"] = make_labels(
            sample["input_ids"], torch.as_tensor(encoded["assistant_masks"])[0], self.processor.tokenizer, self.label_scheme
        )
        if bool((sample["labels"] == IGNORED).all()):
            raise ValueError("it has no assistant message, so there is nothing to learn.")
        if self.max_length is not None and len(sample["input_ids"]) > self.max_length:
            raise ValueError(f"it has {len(sample['input_ids'])} tokens, more than max_length={self.max_length}.")
        if "coordinates" in encoded:
            sample["coordinates"] = encoded["coordinates"][0]
        for name in ("pixel_values", "pixel_values_videos"):
            if name in encoded:
                sample[name] = encoded[name]
        return sample

    def _pad(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED, "coordinates": float("nan")}
        shape = (len(samples), max(len(sample["input_ids"]) for sample in samples))
        batch = {"attention_mask": torch.zeros(shape, dtype=torch.long)}
        for name, value in fill.items():
            if any(name in sample for sample in samples):
                dtype = torch.float32 if name == "coordinates" else torch.long
                batch[name] = torch.full(shape, value, dtype=dtype)  # (batch, sequence)
        for number, sample in enumerate(samples):
            length = len(sample["input_ids"])
            batch["attention_mask"][number, :length] = 1
            for name in fill:
                if name in sample:
                    batch[name][number, :length] = sample[name]
        images = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
        if images:
            batch["pixel_values"] = self._join(images)  # (images, 3, height, width)
        videos = [sample["pixel_values_videos"] for sample in samples if "pixel_values_videos" in sample]
        if videos:
            lengths = sorted({video.shape[1] for video in videos})
            if len(lengths) > 1:
                raise ValueError(f"Videos of {' and '.join(map(str, lengths))} frames do not go into one batch: set num_frames.")
            batch["pixel_values_videos"] = self._join(videos)  # (videos, frames, 3, height, width)
        return batch

    def _join(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        """Concatenates along the first dimension and casts, in one copy; a single tensor of the right type in none."""
        if len(pixels) == 1:
            return pixels[0].to(self.pixel_dtype)
        joined = torch.empty((sum(map(len, pixels)), *pixels[0].shape[1:]), dtype=self.pixel_dtype)
        for part, values in zip(joined.split([len(values) for values in pixels]), pixels, strict=True):
            part.copy_(values)
        return joined
