# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a checkpoint: a small video, a question about it, and what the checkpoint computes for them.

A server or a quantized copy that computes something else gives wrong answers without an error. `fingerprint.json` in the folder of a
checkpoint has what a check needs: the video as bytes, so that no encoder matters; the first tokens of the answer in float32, with the
difference between the two highest logits at each step; and some values of the video's features, which depend on the sampled frames, the
vision encoder, the projector, LAPE and the packer.
"""

import base64
import binascii
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..model.compatibility_llava_st import check_model_matches_processor
from ..model.coordinates_llava_st import coordinate_token, position_to_bin
from ..model.tasks_llava_st import TASKS
from ..shapes.files import write_video
from ..shapes.scenes import Event, Scene, Thing
from .weights_digest import weights_digest
from .wide_precision import float32_arithmetic


FINGERPRINT = "fingerprint.json"
_FORMAT = 1
_NUM_TOKENS = 24
_POSITIONS, _CHANNELS = 6, 4  # of the features, per stream and per position
_SCENE = Scene(
    width=96,
    height=72,
    fps=10,
    num_frames=44,
    things=(Thing("circle", "red", "small", 20.0, 50.0, 18.0), Thing("square", "yellow", "large", 62.0, 26.0, 28.0)),
    events=(Event(0, "moves right", 1.2, 2.8, dx=52.0), Event(1, "turns", 3.5, 4.1, colour="blue")),
    drift=(0.0, 0.0),
    seed=112,  # of a background without noise, for a small file
)
_START, _BOX = 1.2, (11.0, 41.0, 29.0, 59.0)  # of the question: seconds, and (left, top, right, bottom) in pixels
#: Largest difference that a way of computing may cause, in standard deviations of the features and of the logits of a step. "8-bit" and
#: "4-bit": weights of all linear layers but the head; where the vision encoder, projector and packer are in 16 bits, their features are
#: compared as "bfloat16".
#: `examples/benchmarks/fingerprint_tolerances.py` measures them.
TOLERANCES = {
    "float32": (1e-3, 1e-3),
    "float16": (0.02, 0.05),
    "bfloat16": (0.08, 0.3),
    "8-bit": (0.1, 0.5),
    "4-bit": (1.5, 3.0),
}


@dataclass(frozen=True)
class Fingerprint:
    """
    Attributes:
        video: a video file, MP4.
        messages: the chat, whose video item is `{"type": "video"}`; see `chat`. Coordinates are tokens of bins.
        token_ids: first tokens of the answer by greedy decoding in float32; the last is the end token if the answer is shorter.
        margins: difference between the two highest logits at each step.
        logit_std: standard deviation of the logits of a step, the mean of all steps.
        features: `(position, channel, value)` of some features of the video in float32.
        feature_shape: `(num_video_tokens, hidden_size)`.
        feature_std: standard deviation of all features.
        weights: `weights_digest` of the folder.
    """

    video: bytes
    messages: list[dict]
    token_ids: list[int]
    margins: list[float]
    logit_std: float
    features: list[tuple[int, int, float]]
    feature_shape: tuple[int, int]
    feature_std: float
    weights: str

    def chat(self, video) -> list[dict]:
        """Returns the messages with a source in the video item, such as `self.video`, a path or a URL."""
        return _with_video(self.messages, video)

    def check_tokens(self, ids: Sequence[int], tolerance: float | str | torch.dtype = "float32") -> int:
        """
        Compares the tokens of an answer. A step whose margin is not larger than what the arithmetic can move may differ; after a
        difference the steps have other inputs and are not compared.

        Args:
            ids: first generated tokens; as many as `token_ids`, or fewer.
            tolerance: what the difference of two logits can be moved by, in logits; or a key of `TOLERANCES` or a dtype.

        Returns:
            The number of equal tokens.

        Raises:
            ValueError: naming the first step that differs; or if `ids` is empty.
        """
        if not len(ids):
            raise ValueError("No tokens were generated for the fingerprint's question.")
        if not isinstance(tolerance, float):
            tolerance = TOLERANCES[_arithmetic(tolerance)][1] * self.logit_std
        for step, (found, expected, margin) in enumerate(zip(ids, self.token_ids, self.margins, strict=False)):
            if found == expected:
                continue
            if margin <= tolerance:
                return step
            raise ValueError(
                f"The answer to the question of {FINGERPRINT} differs from that of the checkpoint at token {step + 1}: {found} instead of "
                f"{expected}, whose logit is {margin:.3g} above all others in float32 (tolerance {tolerance:.3g}). The model, its weights "
                f"or its inputs are not those of the checkpoint. Tokens: {list(ids)}, expected: {self.token_ids}."
            )
        return min(len(ids), len(self.token_ids))

    def check_features(self, features: torch.Tensor, dtype: str | torch.dtype = "float32") -> float:
        """
        Compares features of the video, as `get_video_features` returns them.

        Args:
            features: (num_video_tokens, hidden_size), or with a first dimension of 1.
            dtype: in which they were computed, or a key of `TOLERANCES`.

        Returns:
            The largest difference in standard deviations of the features.

        Raises:
            ValueError: if their number or width differs, or a value, which is named.
        """
        tolerance = TOLERANCES[_arithmetic(dtype)][0] * self.feature_std
        features = features.detach()
        if features.ndim == 3 and len(features) == 1:
            features = features[0]
        if tuple(features.shape) != tuple(self.feature_shape):
            raise ValueError(
                f"The features of the video of {FINGERPRINT} have the shape {tuple(features.shape)} instead of {tuple(self.feature_shape)} "
                "(num_video_tokens, hidden_size): other frames are sampled, or the model is not that of the checkpoint."
            )
        positions, channels, expected = zip(*self.features, strict=True)
        found = features[torch.tensor(positions, device=features.device), torch.tensor(channels, device=features.device)].float().cpu()
        differences = (found - torch.tensor(expected)).abs()
        differing = [i for i, difference in enumerate(differences.tolist()) if not difference <= tolerance]  # also NaN
        if differing:
            worst = max(differing, key=lambda i: math.inf if differences[i].isnan() else differences[i].item())
            raise ValueError(
                f"{len(differing)} of {len(expected)} features of the video of {FINGERPRINT} differ from those of the checkpoint, most at "
                f"position {positions[worst]}, channel {channels[worst]}: {found[worst]:.4g} instead of {expected[worst]:.4g}, tolerance "
                f"{tolerance:.3g}. Sampled frames, vision encoder, LAPE or packer are not those of the checkpoint."
            )
        return differences.max().item() / self.feature_std


def write_fingerprint(folder: str | os.PathLike, model: PreTrainedModel, processor) -> Fingerprint:
    """
    Computes the fingerprint of a model, and writes it to the folder that the model has been saved to.

    Computed in float32 also where the weights are in half precision; of these, one layer at a time is converted.

    Args:
        folder: with the safetensors files of `model`.
        model: the generation class, not quantized.
        processor: of the model.

    Raises:
        FileNotFoundError: if the folder has no safetensors files of a model.
        ValueError: if the model is quantized, or does not belong to the processor.
    """
    if getattr(model, "is_quantized", False):
        raise ValueError(
            f"{folder} is quantized: its fingerprint would not detect errors of quantization, and that of the original model belongs to "
            "other weights. Serve the original model with a quantization of vLLM, which is checked, or this one with --without-fingerprint."
        )
    fingerprint = compute_fingerprint(model, processor, weights_digest(folder))
    content = {"format": _FORMAT, **asdict(fingerprint), "video": base64.b64encode(fingerprint.video).decode()}
    Path(folder, FINGERPRINT).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return fingerprint


def read_fingerprint(folder: str | os.PathLike) -> Fingerprint | None:
    """
    Reads the fingerprint of a checkpoint folder; None if it has none.

    Raises:
        ValueError: if the file is damaged, or was written for other weights than the folder's.
    """
    path = Path(folder, FINGERPRINT)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        content["video"] = base64.b64decode(content["video"], validate=True)
        content["features"] = [(int(position), int(channel), float(value)) for position, channel, value in content["features"]]
        content["feature_shape"] = tuple(content["feature_shape"])
        fingerprint = Fingerprint(**content)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"{path} is damaged ({error}): write it again with `llava-st fingerprint {folder}`.") from error
    if fingerprint.weights != weights_digest(folder):
        raise ValueError(
            f"{path} was written for other weights than those of the folder, or for these in another dtype. If the weights are as "
            f"intended, write it again with `llava-st fingerprint {folder}`."
        )
    return fingerprint


def compute_fingerprint(model: PreTrainedModel, processor, weights: str) -> Fingerprint:
    """See `write_fingerprint`; `weights` is the digest of the weights."""
    check_model_matches_processor(model.config, processor)
    video, messages = _video(), _messages(processor)
    with float32_arithmetic(model):
        token_ids, logits, features, num_frames = _answer(model, processor, messages, video)
    best = logits.topk(2).values  # (steps, 2)
    fast, _ = processor._num_stream_tokens(num_frames)
    return Fingerprint(
        video=video,
        messages=messages,
        token_ids=token_ids,
        margins=[round(margin, 4) for margin in (best[:, 0] - best[:, 1]).tolist()],
        logit_std=round(logits.std(dim=-1).mean().item(), 6),
        features=[(p, channel, float(f"{features[p, channel].item():.7g}")) for p, channel in _places(fast, *features.shape)],
        feature_shape=(features.shape[0], features.shape[1]),
        feature_std=features.std().item(),
        weights=weights,
    )


def check_checkpoint(model: PreTrainedModel, processor, fingerprint: Fingerprint, arithmetic: str | None = None) -> tuple[int, float]:
    """
    Compares what a loaded model computes with a fingerprint.

    Args:
        arithmetic: key of `TOLERANCES`; by default the dtype of the model.

    Returns:
        The number of equal tokens, and the largest difference of features in their standard deviations.

    Raises:
        ValueError: naming what differs.
    """
    arithmetic = str(model.dtype) if arithmetic is None else arithmetic
    token_ids, _, features, _ = _answer(model, processor, fingerprint.messages, fingerprint.video)
    difference = fingerprint.check_features(features, arithmetic)
    return fingerprint.check_tokens(token_ids, arithmetic), difference


@torch.no_grad()
def _answer(model, processor, messages: list[dict], video: bytes) -> tuple[list[int], torch.Tensor, torch.Tensor, int]:
    """Returns first tokens by greedy decoding, (steps, vocabulary) logits, (tokens, hidden) features and the number of frames."""
    inputs = processor.apply_chat_template(
        _with_video(messages, video), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    pixels = inputs.pop("pixel_values_videos")  # (1, frames, 3, height, width)
    encoded = model.get_video_features(pixels)
    outputs = model.generate(
        **inputs,
        **_GREEDY,
        mm_encoder_outputs={"video": encoded},
        max_new_tokens=_NUM_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    token_ids = outputs.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return token_ids, torch.cat(outputs.logits).float(), encoded.pooler_output[0].float(), pixels.shape[1]


# Settings of the checkpoint that would change a greedy answer are not used.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "renormalize_logits": False}


def _places(fast: int, num_tokens: int, width: int) -> list[tuple[int, int]]:
    """Positions and channels: both ends of both streams, where the markers are, and positions between them."""
    positions = []
    for first, last in ((0, fast - 1), (fast, num_tokens - 1)):
        positions += [first + round(step / (_POSITIONS - 1) * (last - first)) for step in range(_POSITIONS)]
    return [(p, (7 * i + c * width // _CHANNELS) % width) for i, p in enumerate(sorted(set(positions))) for c in range(_CHANNELS)]


def _with_video(messages: list[dict], video) -> list[dict]:
    def with_source(item):
        return {**item, "video": video} if item["type"] == "video" else item

    return [{**message, "content": [with_source(item) for item in message["content"]]} for message in messages]


def _video() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        write_video(_SCENE, path)
        return path.read_bytes()


def _messages(processor) -> list[dict]:
    """Returns the chat. Its coordinates, of all three axes, are tokens, which servers read as well; stage 1 has none."""
    if processor.num_temporal_bins:
        x1, y1, x2, y2 = _BOX
        time = coordinate_token("temporal", position_to_bin(_START / _SCENE.duration, processor.num_temporal_bins))
        across = [coordinate_token("width", position_to_bin(x / _SCENE.width, processor.num_spatial_bins)) for x in (x1, x2)]
        down = [coordinate_token("height", position_to_bin(y / _SCENE.height, processor.num_spatial_bins)) for y in (y1, y2)]
        text = TASKS["elc"].prompt.format(time=time, box=f"[{across[0]}{down[0]}{across[1]}{down[1]}]")
    else:
        text = "Describe the video."
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]


def served_arithmetic(dtype: torch.dtype, quantization) -> str:
    """
    Returns the key of `TOLERANCES` of a model that vLLM serves.

    Args:
        dtype: of activations and of weights that are not quantized.
        quantization: vLLM's `QuantizationConfig`, or None. Methods of an unknown number of bits have the tolerance of 4 bits.
    """
    if quantization is None:
        return _arithmetic(dtype)
    # Each method has an attribute of its own for the number of bits.
    is_8_bit = (
        quantization.get_name() == "fp8" or getattr(quantization, "load_in_8bit", False) or getattr(quantization, "weight_bits", None) == 8
    )
    return "8-bit" if is_8_bit else "4-bit"


def _arithmetic(name: str | torch.dtype) -> str:
    """Returns the key of `TOLERANCES` of a dtype."""
    key = str(name).removeprefix("torch.")
    if key not in TOLERANCES:
        raise ValueError(f"{name!r} must be one of {', '.join(TOLERANCES)}, or the dtype of one of these names.")
    return key
