# SPDX-License-Identifier: Apache-2.0
"""Comparison of the served model with the fingerprint of its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoVideoProcessor
from transformers.utils import cached_file
from vllm.config import ModelConfig
from vllm.logger import init_logger

from ...checkpoints.fingerprint import FINGERPRINT, read_fingerprint, served_arithmetic


logger = init_logger(f"vllm.{__name__}")  # vLLM shows messages of loggers below its own


def check_served_features(
    model_config: ModelConfig, quant_config, device: torch.device, video_features: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """
    Computes the features of the fingerprint's video and compares them. A checkpoint without a fingerprint is served with a warning.

    Args:
        model_config: vLLM's, with the checkpoint.
        quant_config: vLLM's configuration of quantization, or None.
        device: of the model.
        video_features: (num_frames, 3, height, width) pixels → (num_tokens, hidden_size) features.

    Raises:
        ValueError: if they differ, or `fingerprint.json` is damaged or belongs to other weights.
    """
    file = cached_file(model_config.model, FINGERPRINT, revision=model_config.revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        logger.warning(
            "%s has no %s, so it is not checked that its answers are right. Write one with `llava-st fingerprint %s`.",
            model_config.model,
            FINGERPRINT,
            model_config.model,
        )
        return
    fingerprint = read_fingerprint(Path(file).parent)
    processor = AutoVideoProcessor.from_pretrained(model_config.model, revision=model_config.revision)
    frames = processor([fingerprint.video], return_tensors="pt")["pixel_values_videos"][0]  # (num_frames, 3, height, width)
    features = video_features(frames.to(device, model_config.dtype))
    difference = fingerprint.check_features(features, served_arithmetic(model_config.dtype, quant_config))
    logger.info("The features of the checkpoint's fingerprint are equal within %.2g standard deviations.", difference)
