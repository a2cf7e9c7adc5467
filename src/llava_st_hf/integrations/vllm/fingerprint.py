# SPDX-License-Identifier: Apache-2.0
"""Comparison of the served model with the fingerprint of its checkpoint."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoVideoProcessor
from transformers.utils import cached_file
from vllm.config import VllmConfig
from vllm.logger import init_logger

from ...checkpoints.fingerprint import FINGERPRINT, read_fingerprint, served_arithmetic


logger = init_logger(f"vllm.{__name__}")  # vLLM shows messages of loggers below its own


def check_served_features(vllm_config: VllmConfig, video_features: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """
    Computes the features of the fingerprint's video and compares them. A checkpoint without a fingerprint is served with a warning.

    Args:
        vllm_config: with the checkpoint, its dtype and quantization, and the device of the model.
        video_features: (num_frames, 3, height, width) pixels → (num_tokens, hidden_size) features.

    Raises:
        ValueError: if they differ, or `fingerprint.json` is damaged or belongs to other weights.
    """
    model_config = vllm_config.model_config
    file = cached_file(
        model_config.model,
        FINGERPRINT,
        revision=model_config.revision,
        cache_dir=vllm_config.load_config.download_dir,  # where the weights are, which it is compared with
        _raise_exceptions_for_missing_entries=False,
    )
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
    features = video_features(frames.to(vllm_config.device_config.device, model_config.dtype))
    difference = fingerprint.check_features(features, served_arithmetic(model_config.dtype, vllm_config.quant_config))
    logger.info("The features of the checkpoint's fingerprint are equal within %.2g standard deviations.", difference)
