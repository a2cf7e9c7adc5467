# SPDX-License-Identifier: Apache-2.0
"""Data collator: decodes the media of chat samples, in the data loader's workers, and pads samples to a batch."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from ..data.grouping import opening
from ..model.batch_feature_llava_st import LlavaSTBatchFeature, join_samples
from ..model.cached_media_llava_st import CachedMediaProcessor
from ..model.configuration_llava_st import VISUAL_TOKENS
from ..model.media_files_llava_st import MEDIA_ERRORS
from ..model.processing_llava_st import LlavaSTProcessor
from .labels import IGNORED, LossOn, check_loss_on, make_labels
from .prefix_packing import cut_suffix, media_tokens_mask, number_segments, pack_conversations


OnError = Literal["raise", "skip"]


@dataclass
class LlavaSTDataCollator:
    """
    Makes batches of samples with videos, images and text, in any mixture.

    Args:
        processor: of the model to be trained.
        loss_on: which tokens are included in the loss: see `make_labels`.
        on_error: what to do with a sample that cannot be used: "raise" stops training; "skip" drops it from its batch and lists the reason
            in the batch.
        max_length: longest sequence in tokens, media included. A longer sample cannot be used, since cutting it would cut its media or
            its answer.
        pixel_dtype: of the pixels. A model that computes in half precision rounds them to it anyway, and batches need half the memory.
        processor_kwargs: of each call of the processor, such as `video_backend` and `allow_truncated`.
        blank_media: whether to add a blank image to batches without images and a blank video of one frame to batches without videos, each
            with an entry False in `image_mask` or `video_mask`: their features are computed and not used. Every process of a distributed
            run then runs the same modules in the same order and has a gradient for the same weights, as DDP, ZeRO and FSDP need it.
            Losses and gradients do not change.
    """

    processor: LlavaSTProcessor
    loss_on: LossOn = "assistant"
    on_error: OnError = "raise"
    max_length: int | None = None
    pixel_dtype: torch.dtype = torch.float32
    processor_kwargs: dict = field(default_factory=dict)
    blank_media: bool = False

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r} must be "raise" or "skip".')
        self.loss_on = check_loss_on(self.loss_on)

    def __call__(self, rows: list[dict]) -> dict:
        """
        Args:
            rows: with `messages`, and `id`, `source` and `task` as far as known; or with `conversations`, `ids`, `tasks` and `source`,
                as `pack_by_video` makes them. See `llava_st_hf.data`.

        Returns:
            Model inputs with `labels`, padded on the right; `coordinate_values` if a sample has any; `image_mask` and `video_mask` of blank
            media; and for the trainer `tasks`, one name per conversation, and `skipped`, the reasons why samples were dropped. A batch
            without usable samples has one row without labels.

            If a row has several conversations, also `position_ids` and `segment_ids`, both (batch_size, sequence_length). The latter is
            the index into `tasks` of each token, `SHARED` in a prefix that conversations share, and `PADDING`. The attention mask is
            computed from it, since `attention_mask` marks the padding only: see `packed_attention_mask`.

        Raises:
            ValueError: With `on_error="raise"`, if a sample cannot be used, naming the sample and the reason.
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
        if any("segment_ids" in sample for sample in samples):
            number_segments(samples)
        batch = join_samples(samples, self.processor.tokenizer.pad_token_id, "right", self.pixel_dtype)
        if self.blank_media:
            self._add_blank_media(batch)
        return {**batch, "tasks": tasks, "skipped": skipped}

    def _add_blank_media(self, batch: dict[str, torch.Tensor]) -> None:
        """Adds a padding image and a padding video of one frame where the batch has none."""
        for name, mask, frames in (("pixel_values", "image_mask", ()), ("pixel_values_videos", "video_mask", (1,))):
            if name not in batch:
                part = self.processor.video_processor if frames else self.processor.image_processor
                batch[name] = torch.zeros(1, *frames, 3, part.size["height"], part.size["width"], dtype=self.pixel_dtype)
                batch[mask] = torch.zeros(1, dtype=torch.bool)

    def _encode_row(self, row: dict, skipped: list[str]) -> tuple[dict[str, torch.Tensor] | None, list[str]]:
        """Returns the model inputs of one row, or None if no conversation of it can be used, and the tasks of its conversations."""
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
        """Does the same for several conversations about one image or video. A conversation that cannot be used is dropped alone."""
        try:
            prefix, processor = self._encode_prefix(conversations[0])
        except MEDIA_ERRORS as error:
            self._leave_out(ids, source, error, skipped)
            return None, []
        suffixes, names = [], []
        samples: list[dict[str, torch.Tensor] | None] = [None] * len(conversations)
        try:
            encoded = self._apply_template(processor, conversations)  # all at once takes half the time
            samples = [self._tokens(encoded, number) for number in range(len(conversations))]
        except MEDIA_ERRORS:
            pass  # each is encoded alone below, to find which of them it is
        for messages, sample, id, task in zip(conversations, samples, ids, tasks, strict=True):
            try:
                if sample is None:
                    sample, _ = self._encode(processor, messages)
                self._check_learned(sample)
                suffixes.append(cut_suffix(sample, prefix, processor))
                names.append(task)
            except MEDIA_ERRORS as error:
                self._leave_out([id], source, error, skipped)
        if not suffixes:
            return None, []
        sample = pack_conversations(prefix, suffixes)
        try:
            self._check_length(sample)
        except ValueError as error:
            self._leave_out(ids, source, error, skipped)
            return None, []
        return sample, names

    def _encode_prefix(self, messages: list[dict]) -> tuple[dict[str, torch.Tensor], CachedMediaProcessor]:
        """Returns the prefix that conversations about one image or video share, with its tokens at the end; and a processor for the
        conversations."""
        if self.loss_on != "assistant":
            raise ValueError(
                f'loss_on must be "assistant" for rows with `conversations`, got {self.loss_on!r}. Set it, or '
                "max_conversations_per_sequence: 1."
            )
        start = opening(messages)
        if start is None:
            raise ValueError(
                "the row has `conversations`, but no video or image in the first user message. Make such rows with `pack_by_video`."
            )
        prefix, encoded = self._encode(self.processor, start)
        length = int(media_tokens_mask(prefix["input_ids"], self.processor).nonzero()[-1]) + 1  # the template may add tokens after it
        for name in ("input_ids", "coordinate_values"):
            if name in prefix:
                prefix[name] = prefix[name][:length]
        media = encoded.media_info[0][0]
        return prefix, CachedMediaProcessor.from_processor(self.processor, media, VISUAL_TOKENS[f"{media.kind}_token_id"])

    def _encode(self, processor: LlavaSTProcessor, messages: list[dict]) -> tuple[dict[str, torch.Tensor], LlavaSTBatchFeature]:
        """Returns the model inputs of one conversation, text without batch dimension, and the processor's output."""
        encoded = self._apply_template(processor, messages)
        sample = self._tokens(encoded, 0)
        for name in ("pixel_values", "pixel_values_videos"):
            if name in encoded:
                pixels = encoded[name]
                sample[name] = pixels[0][None] if len(pixels) == 1 else torch.stack(list(pixels))
        return sample, encoded

    def _apply_template(self, processor: LlavaSTProcessor, conversation: list) -> LlavaSTBatchFeature:
        # Without `return_tensors`, which would copy each video once more.
        return processor.apply_chat_template(
            conversation,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs=self.processor_kwargs,
        )

    def _tokens(self, encoded: LlavaSTBatchFeature, number: int) -> dict[str, torch.Tensor]:
        """Returns ids, labels and coordinate values of conversation `number`, each (length,)."""
        sample = {"input_ids": torch.tensor(encoded["input_ids"][number])}
        mask = torch.tensor(encoded["assistant_masks"][number])
        sample["labels"] = make_labels(sample["input_ids"], mask, self.processor.tokenizer, self.loss_on)
        if "coordinate_values" in encoded:
            sample["coordinate_values"] = torch.tensor(encoded["coordinate_values"][number])
        return sample

    def _check_learned(self, sample: dict[str, torch.Tensor]) -> None:
        if bool((sample["labels"] == IGNORED).all()):
            raise ValueError("it has no assistant message, so no token has a label. Add the answer.")

    def _check_length(self, sample: dict[str, torch.Tensor]) -> None:
        if self.max_length is not None and len(sample["input_ids"]) > self.max_length:
            length = len(sample["input_ids"])
            raise ValueError(f"it has {length} tokens, more than max_length={self.max_length}. Shorten it, or raise max_length.")

    def _leave_out(self, ids: list, source: str | None, error: Exception, skipped: list[str]) -> None:
        """Adds the reason why conversations cannot be used to `skipped`, or raises it."""
        which = f"Sample {ids[0]!r}" if len(ids) == 1 else f"The group of samples {', '.join(map(repr, ids))}"
        problem = f"{which} of {source or 'the data'}: {error}"
        if self.on_error == "raise":
            raise ValueError(problem) from error
        skipped.append(problem)
