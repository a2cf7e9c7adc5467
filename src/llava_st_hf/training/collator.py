# SPDX-License-Identifier: Apache-2.0
"""Rows of chat messages → a padded batch: media are decoded here, in the data loader's workers."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from ..data.grouping import opening
from ..model.batch_feature_llava_st import LlavaSTBatchFeature, join_samples
from ..model.cached_media_llava_st import CachedMediaProcessor
from ..model.configuration_llava_st import VISUAL_TOKENS
from ..model.media_files_llava_st import MEDIA_ERRORS
from ..model.processing_llava_st import LlavaSTProcessor
from .labels import IGNORED, LossOn, make_labels
from .prefix_packing import join_conversations, medium_mask, number_segments, remainder


OnError = Literal["raise", "skip"]


@dataclass
class LlavaSTDataCollator:
    """
    Makes batches of videos, images and text, mixed as they come.

    Args:
        processor: of the model to be trained.
        loss_on: which tokens are learned: see `make_labels`.
        on_error: what a sample that cannot be used does: "raise" stops the run; "skip" leaves it out of its batch, and the batch
            tells of it.
        max_length: longest sequence in tokens, media included. A longer one cannot be used: cutting it would cut its media or its
            answer.
        pixel_dtype: of the pixels. A model that computes in half precision rounds them to it anyway, and half the bytes travel.
        processor_kwargs: of each call of the processor, such as `video_backend` and `allow_truncated`.
    """

    processor: LlavaSTProcessor
    loss_on: LossOn = "assistant"
    on_error: OnError = "raise"
    max_length: int | None = None
    pixel_dtype: torch.dtype = torch.float32
    processor_kwargs: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r} must be "raise" or "skip".')
        make_labels(torch.zeros(1, dtype=torch.long), torch.zeros(1), self.processor.tokenizer, self.loss_on)  # refuses other schemes

    def __call__(self, rows: list[dict]) -> dict:
        """
        Args:
            rows: with `messages`, and `id`, `source` and `task` as far as known; or with `conversations`, `ids`, `tasks` and `source`,
                as `pack_by_video` makes them. See `llava_st_hf.data`.

        Returns:
            Model inputs with `labels`, padded on the right; `coordinates` where there are any; and for the trainer `tasks`, one
            name per conversation, and `skipped`, why samples were left out. A batch of which nothing is left has one row without
            labels.

            Where a row has several conversations, also `position_ids` and `segments`, both (batch_size, sequence_length). The latter
            says which of `tasks` each token belongs to, `SHARED` where conversations share it and `PADDING` behind the end. It takes
            the place of `attention_mask`, which knows the padding alone: see `mask_of_segments`.

        Raises:
            ValueError: naming the sample and what is wrong with it, with `on_error="raise"`.
        """
        samples: list[dict[str, torch.Tensor]] = []
        tasks: list[str] = []
        skipped: list[str] = []
        for row in rows:
            sample, names = self._encode_row(row, skipped)
            if sample is not None:
                samples.append(sample)
                tasks += names
        if not samples:
            nothing = torch.full((2,), self.processor.tokenizer.pad_token_id)
            samples.append({"input_ids": nothing, "labels": torch.full((2,), IGNORED)})
            tasks.append("all")
        if any("segments" in sample for sample in samples):
            number_segments(samples)
        batch = join_samples(samples, self.processor.tokenizer.pad_token_id, "right", self.pixel_dtype)
        return {**batch, "tasks": tasks, "skipped": skipped}

    def _encode_row(self, row: dict, skipped: list[str]) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
        """Model inputs of one row, None where nothing of it can be used, and the tasks of its conversations."""
        if "conversations" not in row:
            row = {**row, "conversations": [row.get("messages") or []], "ids": [row.get("id")], "tasks": [row.get("task")]}
        conversations, source = row["conversations"], row.get("source")
        tasks = [task or "all" for task in row["tasks"]]
        if len(conversations) > 1:
            return self._encode_group(conversations, row["ids"], tasks, source, skipped)
        try:
            sample, _ = self._encode(self.processor, conversations[0])
            self._check_learned(sample)
            self._check_length(sample)
            return sample, tasks
        except MEDIA_ERRORS as error:
            self._leave_out(row["ids"], source, error, skipped)
            return None, []

    def _encode_group(
        self, conversations: list[list[dict]], ids: list, tasks: list[str], source: str | None, skipped: list[str]
    ) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
        """As `_encode_row`, of several conversations about one medium. What is wrong with one of them leaves out that one alone."""
        try:
            shared, processor = self._encode_shared(conversations[0])
        except MEDIA_ERRORS as error:
            self._leave_out(ids, source, error, skipped)
            return None, []
        remainders, names = [], []
        samples: list[dict[str, torch.Tensor] | None] = [None] * len(conversations)
        try:
            encoded = self._apply_template(processor, conversations)  # all at once takes half the time
            samples = [self._tokens(encoded, number) for number in range(len(conversations))]
        except MEDIA_ERRORS:
            pass  # which of them it is, each tells by itself
        for messages, sample, id, task in zip(conversations, samples, ids, tasks, strict=True):
            try:
                if sample is None:
                    sample, _ = self._encode(processor, messages)
                self._check_learned(sample)
                remainders.append(remainder(sample, shared, processor))
                names.append(task)
            except MEDIA_ERRORS as error:
                self._leave_out([id], source, error, skipped)
        if not remainders:
            return None, []
        sample = join_conversations(shared, remainders)
        try:
            self._check_length(sample)
        except ValueError as error:
            self._leave_out(ids, source, error, skipped)
            return None, []
        return sample, names

    def _encode_shared(self, messages: list[dict]) -> tuple[dict[str, torch.Tensor], CachedMediaProcessor]:
        """What conversations about one medium share, up to and including it; and a processor for what is behind it."""
        if self.loss_on != "assistant":
            raise ValueError(f"conversations are grouped, which loss_on={self.loss_on} does not allow.")
        start = opening(messages)
        if start is None:
            raise ValueError("conversations are grouped that have no medium to share.")
        shared, encoded = self._encode(self.processor, start)
        length = int(medium_mask(shared["input_ids"], self.processor).nonzero()[-1]) + 1  # the template may end the message behind it
        for name in ("input_ids", "coordinates"):
            if name in shared:
                shared[name] = shared[name][:length]
        media = encoded.media_info[0][0]
        return shared, CachedMediaProcessor.after(self.processor, media, VISUAL_TOKENS[f"{media.kind}_token_id"])

    def _encode(self, processor: LlavaSTProcessor, messages: list[dict]) -> tuple[dict[str, torch.Tensor], LlavaSTBatchFeature]:
        """Model inputs of one conversation, without a batch dimension at the text; and what the processor said."""
        encoded = self._apply_template(processor, messages)
        sample = self._tokens(encoded, 0)
        for name in ("pixel_values", "pixel_values_videos"):
            if name in encoded:
                pixels = encoded[name]
                sample[name] = pixels[0][None] if len(pixels) == 1 else torch.stack(list(pixels))
        return sample, encoded

    def _apply_template(self, processor: LlavaSTProcessor, conversation: list) -> LlavaSTBatchFeature:
        # Without tensors of the batch: making one copies each video once more.
        return processor.apply_chat_template(
            conversation,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs=self.processor_kwargs,
        )

    def _tokens(self, encoded: LlavaSTBatchFeature, number: int) -> dict[str, torch.Tensor]:
        """Text of conversation `number` with what is learned of it, each (length,)."""
        sample = {"input_ids": torch.tensor(encoded["input_ids"][number])}
        mask = torch.tensor(encoded["assistant_masks"][number])
        sample["labels"] = make_labels(sample["input_ids"], mask, self.processor.tokenizer, self.loss_on)
        if "coordinates" in encoded:
            sample["coordinates"] = torch.tensor(encoded["coordinates"][number])
        return sample

    def _check_learned(self, sample: dict[str, torch.Tensor]) -> None:
        if bool((sample["labels"] == IGNORED).all()):
            raise ValueError("it has no assistant message, so there is nothing to learn.")

    def _check_length(self, sample: dict[str, torch.Tensor]) -> None:
        if self.max_length is not None and len(sample["input_ids"]) > self.max_length:
            raise ValueError(f"it has {len(sample['input_ids'])} tokens, more than max_length={self.max_length}.")

    def _leave_out(self, ids: list, source: str | None, error: Exception, skipped: list[str]) -> None:
        """Notes why conversations cannot be used, or raises it."""
        which = f"Sample {ids[0]!r}" if len(ids) == 1 else f"The group of samples {', '.join(map(repr, ids))}"
        problem = f"{which} of {source or 'the data'}: {error}"
        if self.on_error == "raise":
            raise ValueError(problem) from error
        skipped.append(problem)
