# SPDX-License-Identifier: Apache-2.0
"""Prompts and media of requests → model inputs, by LLaVA-ST's own processor."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import PIL.Image
from transformers import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)

from ...model.batch_feature_llava_st import MediaText
from ...model.coordinates_llava_st import WIDTH_INPUT_TOKEN, coordinate_token
from ...model.media_files_llava_st import MEDIA_ERRORS
from ...model.media_info_llava_st import MediaInfo
from ...model.original_checkpoint_llava_st import ORIGINAL_MODEL_TYPE
from ...model.processing_llava_st import LlavaSTProcessor
from .media import MediaParser


PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
# Arguments of the video processor that a request may set. All others have no effect on a single video (`clips`), or make inputs that the
# model was not trained with.
VIDEO_OPTIONS = ("num_frames", "fps", "allow_truncated", "video_backend")


def check_layout(model: str, revision: str | None) -> None:
    """Raises `ValueError` for a checkpoint of the original layout, whose weights vLLM cannot rename."""
    raw, _ = PreTrainedConfig.get_config_dict(model, revision=revision)
    if raw.get("model_type") == ORIGINAL_MODEL_TYPE:
        raise ValueError(
            f"{model} has the original layout (model_type {ORIGINAL_MODEL_TYPE!r}), which vLLM cannot load. Convert it with "
            f"`llava-st convert {model} OUTPUT` and serve OUTPUT."
        )


@contextmanager
def bad_requests(parameter: str) -> Iterator[None]:
    """Converts errors about media and text within the context to the exception that vLLM answers with HTTP status 400."""
    try:
        yield
    except MEDIA_ERRORS as error:
        raise VLLMValidationError(str(error), parameter=parameter) from error


def video_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Arguments of the video processor in the `mm_processor_kwargs` of a request.

    Args:
        options: flat, or with the key `videos_kwargs`.

    Raises:
        VLLMValidationError: naming any other key.
    """
    given = {name: value for name, value in options.items() if name not in ("videos_kwargs", "images_kwargs")}
    videos, images = options.get("videos_kwargs") or {}, options.get("images_kwargs") or {}
    unknown = sorted({*given, *videos} - {*VIDEO_OPTIONS}) + [f"images_kwargs[{name!r}]" for name in sorted(images)]
    if unknown:
        raise VLLMValidationError(
            f"mm_processor_kwargs may have {', '.join(VIDEO_OPTIONS)}, got {', '.join(unknown)}. Cut clips before the request.",
            parameter="mm_processor_kwargs",
        )
    return {**given, **videos}


def split_at(token_ids: list[int], separator: int | None) -> list[list[int]]:
    """The runs of ids between those that equal `separator`: one more than there are of these; one of all ids for None."""
    runs: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id == separator:
            runs.append([])
        else:
            runs[-1].append(token_id)
    return runs


class UnreadMedium:
    """An image or video that need not be decoded, because its features are in vLLM's cache."""

    def position(self, axis: str, value: float, written: str) -> float:
        raise ValueError(
            f"The coordinate {written!r} has a unit, which a server does not convert. Write the coordinate token, or a fraction of the "
            "image or video; `llava_st_hf.client` does it."
        )


class LlavaSTProcessingInfo(BaseProcessingInfo):
    """Facts about the processor that vLLM plans memory with."""

    def __init__(self, ctx) -> None:
        super().__init__(ctx)
        check_layout(ctx.model_config.model, ctx.model_config.revision)

    def get_hf_processor(self, **kwargs: object) -> LlavaSTProcessor:
        # Without arguments of requests, which are arguments of its calls here: vLLM would load a processor for each combination.
        return self.ctx.get_hf_processor(LlavaSTProcessor)

    def get_data_parser(self) -> MediaParser:
        return MediaParser(expected_hidden_size=self._get_expected_hidden_size())

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None, "video": None}

    @property
    def num_frames(self) -> int:
        """Frames of a video in requests that do not set their number."""
        options = video_options(self.ctx.get_merged_mm_kwargs({}))
        return options.get("num_frames") or self.get_hf_processor().video_processor.num_frames

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        # Sizes in pixels do not matter, because media are resized to a square.
        counts = self.get_hf_processor()._get_num_multimodal_tokens(image_sizes=[(1, 1)], video_sizes=[(self.num_frames, 1, 1)])
        return {"image": counts["num_image_tokens"][0], "video": counts["num_video_tokens"][0]}


class LlavaSTDummyInputs(BaseDummyInputsBuilder[LlavaSTProcessingInfo]):
    """Black images and videos, with which vLLM measures the memory that requests need."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        processor = self.info.get_hf_processor()
        return processor.image_token * mm_counts.get("image", 0) + processor.video_token * mm_counts.get("video", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> dict[str, Any]:
        processor = self.info.get_hf_processor()
        image, video = processor.image_processor.size, processor.video_processor.size
        frames = np.zeros((self.info.num_frames, video["height"], video["width"], 3), np.uint8)
        return {
            "image": [PIL.Image.new("RGB", (image["width"], image["height"]))] * mm_counts.get("image", 0),
            "video": [frames] * mm_counts.get("video", 0),
        }


class LlavaSTMultiModalProcessor(BaseMultiModalProcessor[LlavaSTProcessingInfo]):
    """Converts requests with images and videos: their text as `LlavaSTProcessor` does, each image and each video by a call of it."""

    def apply(self, inputs: ProcessorInputs, *args, **kwargs):
        for modality, options in (inputs.media_io_kwargs or {}).items():
            if options:
                raise VLLMValidationError(
                    f"media_io_kwargs[{modality!r}] is {dict(options)!r}, but LLaVA-ST reads media by its own processors. Remove it; "
                    f"mm_processor_kwargs may have {', '.join(VIDEO_OPTIONS)}.",
                    parameter="media_io_kwargs",
                )
        video_options(inputs.hf_processor_mm_kwargs)
        with bad_requests("prompt"):
            prompt = self._prompt(inputs.prompt, inputs.mm_data_items.get_all_counts())
        # With the `uuid` of a request, vLLM's caches, which all clients share, would find features by it, whatever the file contains.
        # Without it they find them by a hash of the content.
        return super().apply(replace(inputs, prompt=prompt, mm_uuid_items=None), *args, **kwargs)

    def _prompt(self, prompt: str | list[int], counts: Mapping[str, int]) -> list[int]:
        """
        Token ids of a prompt, with one patch token in the place of each image and of each video.

        The text is checked and its coordinates are read by LLaVA-ST's processor. It is tokenized after this replacement, because `<video>`
        is no token of the vocabulary: its characters may be in one token with those beside it.
        """
        processor = self.info.get_hf_processor()
        tokenizer = self.info.get_tokenizer()
        text, mark, given_embedding = prompt, None, None
        if not isinstance(prompt, str):
            # With `--enable-prompt-embeds` vLLM adds one token, to another copy of the tokenizer, for each row that is given as embedding.
            given_embedding = len(tokenizer) if self.info.ctx.model_config.enable_prompt_embeds else None
            unknown = [token_id for token_id in prompt if token_id >= len(tokenizer) and token_id != given_embedding]
            if unknown:
                raise ValueError(f"The prompt contains token ids that are not in the vocabulary of {len(tokenizer)} tokens: {unknown[:5]}.")
            texts = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in split_at(prompt, given_embedding)]
            mark = next(chr(code) for code in range(0xE000, 0xF8FF) if not any(chr(code) in part for part in texts))  # private use
            text = mark.join(texts)
        if processor.ignore_prompt_x_coordinates:  # a prompt that has been processed; the processor writes this token for any width
            text = text.replace(WIDTH_INPUT_TOKEN, coordinate_token("width", 0))
        tokens = {"image": processor.image_token, "video": processor.video_token}
        patches = {"image": processor.image_token_id, "video": processor.video_token_id}
        replacements = {}
        for kind, token in tokens.items():
            found, given = text.count(token), counts.get(kind, 0)
            if found != given:
                raise ValueError(f"The prompt has {found} {token} for {given} {kind}s. The numbers must be equal.")
            medium = cast(MediaInfo, UnreadMedium())  # of a MediaInfo only `position` is used
            patch = MediaText(tokenizer.convert_ids_to_tokens(patches[kind]), medium)
            replacements[f"{kind}s_replacements"] = [patch] * given
        [text], _ = processor.get_text_with_replacements([text], **replacements)
        token_ids: list[int] = []
        for number, part in enumerate([text] if mark is None else text.split(mark)):
            token_ids += [given_embedding] * (number > 0) + tokenizer.encode(part, add_special_tokens=False)
        return token_ids

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Calls LLaVA-ST's processor for each item: its pixels, and the tokens that replace its token in the prompt."""
        processor, dtype = self.info.get_hf_processor(), self.info.ctx.model_config.dtype
        options = video_options(self.info.ctx.get_merged_mm_kwargs(hf_kwargs))
        data: dict[str, list] = {}
        for kind, items in mm_items.items():
            for item in items.get_all():
                arguments: dict[str, Any] = {"images": [item]} if kind == "image" else self._video_arguments(item, options)
                with bad_requests(kind):
                    output = processor(
                        text=getattr(processor, f"{kind}_token"),
                        text_kwargs={"add_special_tokens": False},
                        return_tensors="pt",
                        **arguments,
                    )
                data.setdefault(PIXELS[kind], []).append(output[PIXELS[kind]][0].to(dtype))
                data.setdefault(f"{kind}_replacement_ids", []).append(output["input_ids"][0])
        return BatchFeature(data)

    @staticmethod
    def _video_arguments(item, options: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(item, tuple):
            return {"videos": [item], "videos_kwargs": options}
        frames, metadata = item
        metadata = dict(metadata)
        # vLLM's key for frames that have been sampled before.
        sampled = {"do_sample_frames": metadata.pop("do_sample_frames")} if "do_sample_frames" in metadata else {}
        return {"videos": [frames], "videos_kwargs": {**options, **sampled, "video_metadata": [metadata]}}

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        names = {kind: (PIXELS[kind], f"{kind}_replacement_ids") for kind in PIXELS}
        return {name: MultiModalFieldConfig.batched(kind) for kind, pair in names.items() for name in pair if name in hf_inputs}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: MultiModalKwargsItems
    ) -> Sequence[PromptUpdate]:
        processor = self.info.get_hf_processor()
        updates = []
        for kind, items in out_mm_kwargs.items():
            # Removed, so that they are not sent to the model. A plain list of ids means that each of them is replaced by a feature: those
            # of the markers have features, too.
            ids = [item.pop(f"{kind}_replacement_ids").data.tolist() for item in items]
            target = [getattr(processor, f"{kind}_token_id")]
            updates.append(PromptReplacement(modality=kind, target=target, replacement=ids.__getitem__))
        return updates
