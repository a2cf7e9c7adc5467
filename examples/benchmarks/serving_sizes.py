# SPDX-License-Identifier: Apache-2.0
"""Computes what a server needs for a checkpoint: tokens of images and videos, keys and values, weights.

    python examples/benchmarks/serving_sizes.py
    python examples/benchmarks/serving_sizes.py --config path/to/checkpoint --frames 20 100 200 --memory 24 40 80

All numbers are computed from the configuration, for weights and keys and values in 16 bits; nothing is measured. "Requests" is the number
of requests with one video, `--text` tokens of text and `--answer` tokens of the answer whose keys and values fit beside the weights into
90 % of the memory of a GPU (vLLM's default) less `--reserve` GiB for activations and workspaces.
"""

import argparse

import torch

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration


GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="folder or hub id of a checkpoint; default: the published sizes")
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--memory", type=float, nargs="+", default=[24, 40, 80], help="of GPUs, in GiB")
    parser.add_argument("--text", type=int, default=200, help="tokens of prompt template and question")
    parser.add_argument("--answer", type=int, default=400, help="tokens of the answer")
    parser.add_argument("--reserve", type=float, default=2.0, help="GiB for activations and workspaces")
    args = parser.parse_args()
    config = LlavaSTConfig() if args.config is None else LlavaSTConfig.from_pretrained(args.config)
    text, vision = config.text_config, config.vision_config
    with torch.device("meta"):
        model = LlavaSTForConditionalGeneration(config)
    weights = 2 * sum(weight.numel() for weight in model.parameters()) / GIB
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head
    image = (config.grid_size // config.packer_spatial_stride if config.use_downsample_image else config.grid_size) ** 2
    print(f"weights {weights:.1f} GiB, keys and values {per_token:,} bytes per token, image {image} tokens")
    print(f"{'frames':>6s} {'tokens':>6s} {'pixels':>8s} {'KV/request':>10s}", *(f"{memory:g} GiB: requests" for memory in args.memory))
    for frames in args.frames:
        slow = -(-frames // config.packer_temporal_stride) * config.packed_grid_size**2
        video = frames * config.fast_grid_size**2 + slow
        request = (video + args.text + args.answer) * per_token
        pixels = frames * 3 * vision.image_size**2 * 2 / 2**20
        fits = [max(0, int((0.9 * memory - args.reserve - weights) * GIB // request)) for memory in args.memory]
        print(
            f"{frames:6d} {video:6d} {pixels:4.0f} MiB {request / 2**20:6.0f} MiB",
            *(f"{count:{len(f'{memory:g} GiB: requests')}d}" for count, memory in zip(fits, args.memory, strict=True)),
        )


if __name__ == "__main__":
    main()
