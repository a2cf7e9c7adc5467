# SPDX-License-Identifier: Apache-2.0
"""Refiners by name, and of models of transformers."""

import os
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from .detectors import ObjectDetector
from .segmenters import TextSegmenter, VideoSegmenter
from .targets import Refiner


DETECTORS = ("grounding-dino", "mm-grounding-dino", "omdet-turbo", "owlv2", "owlvit")
# model_type → names of model and processor in transformers. The auto classes choose models for images of some of these.
SEGMENTERS = {
    "sam2_video": ("Sam2VideoModel", "Sam2VideoProcessor"),
    "edgetam_video": ("EdgeTamVideoModel", "Sam2VideoProcessor"),
    "sam3_tracker_video": ("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor"),
    "sam3_video": ("Sam3VideoModel", "Sam3VideoProcessor"),
}


def load(refiner, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto", **options) -> Refiner:
    """
    Returns a refiner.

    Args:
        refiner: a hub id or folder of a checkpoint of Grounding DINO, MM Grounding DINO, OWL-ViT, OWLv2, OmDet-Turbo, SAM 2, EdgeTAM or
            SAM 3; `(model, processor)` of one; or a `Refiner`, which is returned unchanged.
        device: that a model loaded by name is moved to; None for the CPU.
        dtype: of a model loaded by name; "auto" for that of the checkpoint.
        options: of `ObjectDetector`, `VideoSegmenter` or `TextSegmenter`, whichever fits the model, such as `text` and `threshold`.

    Raises:
        ValueError: if it is none of these, or an option is not valid.
        TypeError: for an option that this kind of model does not have.
        OSError: if there is no such checkpoint.
    """
    if isinstance(refiner, (str, os.PathLike)):
        return load(_from_pretrained(os.fspath(refiner), device, dtype), **options)
    if isinstance(refiner, tuple) and len(refiner) == 2:
        return _refiner_of(*refiner, options)
    if not isinstance(refiner, Refiner) or isinstance(refiner, type):
        raise ValueError(
            "refine must be the name of a checkpoint, (model, processor) of an object detector or video segmenter, or an object with a "
            f"method `locate`; got {refiner!r:.200}."
        )
    if options:
        raise ValueError(f"{', '.join(options)}: options are for a model; this refiner has its own.")
    return refiner


def _from_pretrained(name: str, device, dtype) -> tuple[Any, Any]:
    kind = AutoConfig.from_pretrained(name).model_type
    _check_kind(kind, name)
    model_class, processor_class = AutoModelForZeroShotObjectDetection, AutoProcessor
    if kind in SEGMENTERS:
        model_class, processor_class = (getattr(transformers, class_name) for class_name in SEGMENTERS[kind])
    model = model_class.from_pretrained(name, dtype=dtype)
    return model if device is None else model.to(device), processor_class.from_pretrained(name)


def _refiner_of(model, processor, options: dict[str, Any]) -> Refiner:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    _check_kind(kind, type(model).__name__)
    if kind in DETECTORS:
        return ObjectDetector(model, processor, **options)
    return (TextSegmenter if kind == "sam3_video" else VideoSegmenter)(model, processor, **options)


def _check_kind(kind: str | None, name: str) -> None:
    if kind not in (*DETECTORS, *SEGMENTERS):
        raise ValueError(f"{name} is of the type {kind!r}; refine takes {', '.join((*DETECTORS, *SEGMENTERS))}.")


__all__ = ["load"]
