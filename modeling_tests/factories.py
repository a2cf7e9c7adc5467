# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, and inputs for them."""

from contextlib import contextmanager

import torch
import transformers
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration


NAN = float("nan")
BASE_VOCABULARY = 99  # ordinary tokens; the 14 special tokens and the coordinate tokens follow
IMAGE_SIZE, PATCH_SIZE = 18, 2  # a grid of 9×9 patches, packed to 3×3 cells, and to one cell for the fast stream
NUM_FRAMES = 4


def tiny_config(num_temporal_bins: int = 6, num_spatial_bins: int = 5, **overrides) -> LlavaSTConfig:
    """Configuration of a model that runs in milliseconds. `text_config` and `vision_config` may contain some keys only."""
    num_coordinates = num_temporal_bins + 2 * num_spatial_bins if overrides.get("use_coordinate_tokens", True) else 0
    vision_config = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE,
    }  # fmt: skip
    text_config = {
        "vocab_size": BASE_VOCABULARY + 14 + num_coordinates,
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    options = {"packer_hidden_size": 16, "packer_num_attention_heads": 2, "packer_temporal_stride": 2, **overrides}
    options["vision_config"] = {**vision_config, **overrides.get("vision_config", {})}
    options["text_config"] = {**text_config, **overrides.get("text_config", {})}
    return LlavaSTConfig(num_temporal_bins=num_temporal_bins, num_spatial_bins=num_spatial_bins, **options)


def tiny_model(config: LlavaSTConfig | None = None, **overrides) -> LlavaSTForConditionalGeneration:
    """Deterministic model in evaluation mode, whose weights are scaled up so that every input affects the logits."""
    torch.manual_seed(0)
    model = LlavaSTForConditionalGeneration(config or tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def enable_checkpointing(model: LlavaSTForConditionalGeneration, use_reentrant: bool):
    """Enables gradient checkpointing by the method of the installed transformers, whose name version 5.24 has changed."""
    renamed = Version(transformers.__version__) >= Version("5.24")
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def image_tokens(config: LlavaSTConfig) -> list[int]:
    count = (config.packed_grid_size if config.use_downsample_image else config.grid_size) ** 2
    return [config.image_start_token_id, *[config.image_token_id] * (count - 2), config.image_end_token_id]


def video_tokens(config: LlavaSTConfig, num_frames: int = NUM_FRAMES) -> list[int]:
    fast = num_frames * config.fast_grid_size**2
    slow = -(-num_frames // config.packer_temporal_stride) * config.packed_grid_size**2
    patch = config.video_token_id
    tokens = [config.video_start_token_id, *[patch] * (fast - 2), config.video_end_token_id] if fast > 1 else [patch]
    return [*tokens, config.slow_video_start_token_id, *[patch] * (slow - 2), config.slow_video_end_token_id]


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def random_videos(count: int, num_frames: int = NUM_FRAMES, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, num_frames, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def random_positions(config: LlavaSTConfig, input_ids: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Random positions for coordinate tokens and placeholders, NaN elsewhere."""
    vocabulary = config.coordinates
    positions = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(seed))
    is_coordinate = (input_ids >= vocabulary.start_token_id) & (input_ids < vocabulary.end_token_id)
    is_coordinate |= torch.isin(input_ids, torch.tensor(vocabulary.placeholder_token_ids))
    return positions.masked_fill(~is_coordinate, NAN)


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of prompts of unequal length."""
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }


def mixed_prompts(config: LlavaSTConfig) -> list[tuple[list[int], int, int]]:
    """`(tokens, images, videos)` of four prompts: two images, one image, a video, and text alone, all with coordinates."""
    first = config.coordinate_start_token_id
    image, video = image_tokens(config), video_tokens(config)
    return [
        ([10, 11, *image, 12, *image, first + 1, first + 8, 13], 2, 0),
        ([20, *image, 21, first + 3, config.width_input_token_id, 22], 1, 0),
        ([30, 31, *video, first + 2, first + 7, first + 12, config.temporal_input_token_id, 33], 0, 1),
        ([40, 41, first, 42, config.height_input_token_id, 43], 0, 0),
    ]


def mixed_batch(config: LlavaSTConfig) -> dict[str, torch.Tensor]:
    """The prompts of `mixed_prompts` as one left-padded batch."""
    batch = left_padded([tokens for tokens, _, _ in mixed_prompts(config)])
    batch["coordinate_values"] = random_positions(config, batch["input_ids"])
    return {**batch, "pixel_values": random_images(3), "pixel_values_videos": random_videos(1)}


def single_prompts(config: LlavaSTConfig) -> list[dict[str, torch.Tensor]]:
    """The rows of `mixed_batch`, each as a separate batch without padding."""
    batch, singles, image = mixed_batch(config), [], 0
    for row, (tokens, images, videos) in enumerate(mixed_prompts(config)):
        single = {key: batch[key][row : row + 1, -len(tokens) :] for key in ("input_ids", "attention_mask", "coordinate_values")}
        if images:
            single["pixel_values"] = batch["pixel_values"][image : image + images]
            image += images
        if videos:
            single["pixel_values_videos"] = batch["pixel_values_videos"]
        singles.append(single)
    return singles


class _Watcher(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = [leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in inputs:
                self.calls.append((func.overloadpacket.__name__, tuple(leaf.shape)))
        return out


@contextmanager
def watch_new_tensors():
    """Yields a list to which `(operation, shape)` of every tensor allocated inside the block is appended."""
    with _Watcher() as watcher:
        yield watcher.calls
