# SPDX-License-Identifier: Apache-2.0
"""Estimates the memory that inference with the published sizes needs, without a GPU.

    python examples/benchmarks/inference_memory.py
    python examples/benchmarks/inference_memory.py --config path/to/checkpoint --frames 50 100 200 --batch-sizes 1 4

The pass over the prompt (vision encoder, packer, decoder) runs on tensors without data, and the bytes of the live ones are added up. This
is an estimate: fragmentation, workspaces of kernels and the CUDA context (about 0.5 GB) are not included.
"""

import argparse

import torch
import transformers
from training_cost import StepCosts, allocate, tensors_without_data
from training_step import make_batch

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration


def estimate(config: LlavaSTConfig, batch_size: int, frames: int, chunk: int, new_tokens: int) -> tuple[float, float, float, int]:
    """
    Returns (weights, key-value cache, peak) in GB of 1e9 bytes, and the tokens of the prompt.

    Args:
        config: of the model.
        batch_size, frames: videos, and sampled frames of each.
        chunk: frames per pass of the vision encoder.
        new_tokens: generated tokens that the key-value cache has place for.
    """
    with torch.device("meta"):
        model = LlavaSTForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    costs = StepCosts(0)
    with tensors_without_data(costs, 1e6), torch.no_grad():
        allocate(model)
        weights = costs.total
        batch = make_batch(config, batch_size, frames, "cpu", torch.bfloat16)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values_videos")}
        costs.reset_peak()
        model(**batch, use_cache=True, logits_to_keep=1, vision_chunk_size=chunk)
        peak, tokens = costs.peak, batch["input_ids"].shape[1]
    text = config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 2
    cache = batch_size * (tokens + new_tokens) * per_token
    # The cache of the prompt is part of the peak if that is reached in the decoder; the larger one of both moments counts.
    return weights / 1e9, cache / 1e9, max(peak, weights + cache) / 1e9, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="folder or hub id of a checkpoint; default: the published sizes")
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--chunks", type=int, nargs="+", default=[100, 10], help="frames per pass of the vision encoder")
    parser.add_argument("--new-tokens", type=int, default=1400, help="generated tokens")
    args = parser.parse_args()
    config = LlavaSTConfig() if args.config is None else LlavaSTConfig.from_pretrained(args.config)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; bfloat16, GB of 1e9 bytes, estimated without a GPU")
    print(f"{'batch':>5s} {'frames':>6s} {'chunk':>5s} {'prompt':>7s} {'weights':>8s} {'cache':>6s} {'peak':>6s}")
    for batch_size in args.batch_sizes:
        for frames in args.frames:
            for chunk in args.chunks:
                weights, cache, peak, tokens = estimate(config, batch_size, frames, chunk, args.new_tokens)
                print(f"{batch_size:5d} {frames:6d} {chunk:5d} {tokens:7d} {weights:8.2f} {cache:6.2f} {peak:6.2f}", flush=True)


if __name__ == "__main__":
    main()
