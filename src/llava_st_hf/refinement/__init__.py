# SPDX-License-Identifier: Apache-2.0
"""Refinement of answers by object detectors and video segmentation models: a box, and a mask where the model makes masks, in each frame of
the span of an event."""

from .answers import refine_answer
from .detectors import DetectionRefiner, ObjectDetector
from .loading import load
from .masks import decode_mask, encode_mask
from .segmenters import TextSegmenter, VideoSegmenter
from .targets import Refiner, Target
from .tracks import Detections, Linking


__all__ = [
    "DetectionRefiner",
    "Detections",
    "Linking",
    "ObjectDetector",
    "Refiner",
    "Target",
    "TextSegmenter",
    "VideoSegmenter",
    "decode_mask",
    "encode_mask",
    "load",
    "refine_answer",
]
