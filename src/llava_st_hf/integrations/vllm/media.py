# SPDX-License-Identifier: Apache-2.0
"""Images and videos of requests as vLLM passes them on: the bytes of the files, which LLaVA-ST's own processors decode."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from ...model.configuration_llava_st import LlavaSTConfig
from ...model.image_files_llava_st import load_image
from ...model.image_processing_llava_st import pil_to_array
from ...model.video_processing_llava_st import LlavaSTVideoProcessor


LOADER = LlavaSTConfig.model_type
# vLLM finds the loader by the name of the video processor, and that name by the model type where a checkpoint has no file
# `preprocessor_config.json`.
VIDEO_PROCESSOR_MAPPING_NAMES[LlavaSTConfig.model_type] = LlavaSTVideoProcessor.__name__


@VIDEO_LOADER_REGISTRY.register(LOADER, video_processor=LlavaSTVideoProcessor.__name__)
class FileVideoLoader(VideoLoader):
    """Leaves a video file as it is. Its frames are decoded later, only if they are not in vLLM's cache of processed media, and by the
    video processor of the checkpoint, which has the number of frames; vLLM passes no settings of a checkpoint to a loader."""

    @classmethod
    def load_bytes(cls, data: bytes, **kwargs) -> tuple[np.ndarray, dict[str, Any]]:
        # vLLM keeps the bytes beside the result. Options (`media_io_kwargs`) are refused by the processor, which gets them as well.
        return np.empty(0, np.uint8), {"video_backend": LOADER}


class MediaItems(ProcessorBatchItems[Any]):
    """
    Images or videos of a request.

    Args:
        data: for each item, what LLaVA-ST's processors take: bytes of a file, a PIL image, an array, `(frames, metadata)` for a video.
        modality: `"image"` or `"video"`.
    """

    def __init__(self, data: Sequence[Any], modality: str) -> None:
        super().__init__(data, modality)

    def get_item_for_hash(self, index: int) -> Any:
        item = self.data[index]
        # Not the image itself: vLLM takes an identifier in its EXIF data, which any image can contain, for its content.
        return pil_to_array(load_image(item)) if isinstance(item, PIL.Image.Image) else item


def _is_frames(value) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


class MediaParser(MultiModalDataParser):
    """Parser of the images and videos of a request. See `MediaItems` for what it accepts."""

    def parse_mm_data(self, mm_data: Mapping[str, Any]) -> MultiModalDataItems:
        unknown = sorted(mm_data.keys() - {"image", "video"})
        if unknown:
            raise VLLMValidationError(f"LLaVA-ST takes images and videos, got {', '.join(unknown)}.", parameter=unknown[0])
        return super().parse_mm_data(mm_data)

    def _parse_image_data(self, data) -> ModalityDataItems | None:
        return self._parse(data, "image", 3)

    def _parse_video_data(self, data) -> ModalityDataItems | None:
        return self._parse(data, "video", 4)

    def _parse(self, data, modality: str, ndim: int) -> MediaItems | None:
        if data is None:
            return None
        single = (bytes, PIL.Image.Image, MediaWithBytes, tuple)
        if isinstance(data, single) or (_is_frames(data) and data.ndim == ndim):
            data = [data]
        if not isinstance(data, list) and not (_is_frames(data) and data.ndim == ndim + 1):
            raise VLLMValidationError(
                f"A {modality} must be the bytes of a file{', a PIL image' if ndim == 3 else ''} or an array with {ndim} axes; got "
                f"{type(data).__name__}{f' of shape {tuple(data.shape)}' if _is_frames(data) else ''}. Precomputed embeddings are not "
                "supported.",
                parameter=modality,
            )
        return MediaItems([self._item(item, modality) for item in data], modality)

    @staticmethod
    def _item(item, modality: str):
        if isinstance(item, MediaWithBytes):
            if modality == "image":
                return bytes(item.original_bytes)  # vLLM has composited transparency over white and clipped 16-bit values
            loader = item.media[1]["video_backend"]
            if loader != LOADER:
                raise VLLMValidationError(
                    f"The video was decoded by {loader!r}, which samples other frames than LLaVA-ST. Send the video as a file (a sequence "
                    "of JPEG images is not accepted) and without video_backend in media_io_kwargs.",
                    parameter="video",
                )
            return bytes(item.original_bytes)
        kinds = (bytes, PIL.Image.Image) if modality == "image" else (bytes,)
        is_video_with_metadata = modality == "video" and isinstance(item, tuple) and len(item) == 2 and _is_frames(item[0])
        if isinstance(item, kinds) or _is_frames(item) or is_video_with_metadata:
            return item
        if item is None:
            raise VLLMValidationError(
                f"The {modality} is missing. Send it with each request: a uuid does not replace it, because another client may have chosen "
                "the same one.",
                parameter="uuid",
            )
        raise VLLMValidationError(
            f"A {modality} must be the bytes of a file, an array{' or (array, metadata)' if modality == 'video' else ' or a PIL image'}; "
            f"got {type(item).__name__}.",
            parameter=modality,
        )
