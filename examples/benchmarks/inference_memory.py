# SPDX-License-Identifier: Apache-2.0
"""Estimates the memory that inference with the published sizes needs, without a GPU.

    python examples/benchmarks/inference_memory.py
    python examples/benchmarks/inference_memory.py --config path/to/checkpoint --frames 50 100 200 --batch-sizes 1 4
    python examples/benchmarks/inference_memory.py --weights bfloat16 int8 nf4 --batch-sizes 1 --chunks 100
    python examples/benchmarks/inference_memory.py --check      # needs bitsandbytes

The pass over the prompt (vision encoder, packer, decoder) runs on tensors without data, and the bytes of the live ones are added up. This
is an estimate: fragmentation, workspaces of kernels and the CUDA context (about 0.5 GB) are not included.

int8 and nf4 are those of bitsandbytes; head, embeddings, vision encoder, projector and packer stay in bfloat16, as `from_pretrained` leaves
them. With nf4 a layer is converted to bfloat16 for its product, so that the largest one is added to the peak. `--check` compares the
computed bytes with those of a model of 0.8 billion weights, built and quantized.
"""

import argparse
import tempfile
from collections import Counter

import torch
import transformers
from training_cost import StepCosts, allocate, tensors_without_data
from training_step import make_batch
from transformers import BitsAndBytesConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration
from llava_st_hf.model.quantization_llava_st import FLOATING_POINT_MODULES


BLOCK = 64  # weights with one scale in nf4
QUANTIZATION = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
KINDS = ("bfloat16", *QUANTIZATION)
PARTS = ("vision_tower", "multi_modal_projector", "packer", "embed_tokens", "layers", "norm", "lm_head")


def layer_bytes(weight: torch.Tensor, kind: str) -> float:
    """Bytes of the weight of a linear layer: int8 has a float32 scale for each output, nf4 one for each block."""
    return weight.numel() + 4 * weight.shape[0] if kind == "int8" else weight.numel() / 2 + 4 * weight.numel() / BLOCK


def bytes_by_part(model, kind: str) -> Counter:
    """Bytes of the weights of a bfloat16 model in each of `PARTS`, if they were of a kind."""
    found = Counter()
    for name, module in model.named_modules():
        part = next((part for part in PARTS if part in name.split(".")), None)
        for parameter_name, parameter in module.named_parameters(recurse=False):
            quantized = (
                kind != "bfloat16"
                and isinstance(module, torch.nn.Linear)
                and parameter_name == "weight"
                and should_convert_module(name, FLOATING_POINT_MODULES)
            )
            found[part] += layer_bytes(parameter, kind) if quantized else parameter.nbytes
    return found


def empty_model(config: LlavaSTConfig) -> LlavaSTForConditionalGeneration:
    """A bfloat16 model without data."""
    with torch.device("meta"):
        return LlavaSTForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()


def check_sizes() -> None:
    """Prints computed and measured bytes of a model with the vision encoder and the packer of the published one, and a smaller decoder."""
    text = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 8, "num_attention_heads": 14, "num_key_value_heads": 2}
    base = LlavaSTConfig().to_dict()
    config = LlavaSTConfig(**{**base, "text_config": {**base["text_config"], **text, "layer_types": None}})
    model = LlavaSTForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    print("\n| weights | computed, bytes | measured, bytes | difference |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        for kind in KINDS:
            options = {"quantization_config": BitsAndBytesConfig(**QUANTIZATION[kind])} if kind in QUANTIZATION else {}
            loaded = LlavaSTForConditionalGeneration.from_pretrained(folder, dtype="bfloat16", **options)
            measured = sum(tensor.nbytes for tensor in loaded.state_dict().values())
            computed = sum(bytes_by_part(empty_model(config), kind).values())
            print(f"| {kind} | {computed:,.0f} | {measured:,} | {measured / computed - 1:+.4%} |", flush=True)


def estimate(
    config: LlavaSTConfig, batch_size: int, frames: int, chunk: int, new_tokens: int, kind: str = "bfloat16"
) -> tuple[float, float, float, int]:
    """
    Returns (weights, key-value cache, peak) in GB of 1e9 bytes, and the tokens of the prompt.

    Args:
        config: of the model.
        batch_size, frames: videos, and sampled frames of each.
        chunk: frames per pass of the vision encoder.
        new_tokens: generated tokens that the key-value cache has place for.
        kind: of the weights, one of `KINDS`.
    """
    model = empty_model(config)
    smaller = sum(bytes_by_part(model, "bfloat16").values()) - sum(bytes_by_part(model, kind).values())
    if kind == "nf4":
        smaller -= max(layer.weight.nbytes for layer in model.model.language_model.layers.modules() if isinstance(layer, torch.nn.Linear))
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
    stored = sum(bytes_by_part(empty_model(config), kind).values())
    return stored / 1e9, cache / 1e9, (max(peak, weights + cache) - smaller) / 1e9, tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="folder or hub id of a checkpoint; default: the published sizes")
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--chunks", type=int, nargs="+", default=[100, 10], help="frames per pass of the vision encoder")
    parser.add_argument("--new-tokens", type=int, default=1400, help="generated tokens")
    parser.add_argument("--weights", nargs="+", choices=KINDS, default=["bfloat16"], help="kinds of weights")
    parser.add_argument("--check", action="store_true", help="compare computed and measured bytes of the weights of a smaller model")
    args = parser.parse_args()
    if args.check:
        return check_sizes()
    config = LlavaSTConfig() if args.config is None else LlavaSTConfig.from_pretrained(args.config)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}; GB of 1e9 bytes, estimated without a GPU")
    print(f"{'weights':>8s} " + " ".join(f"{part:>21s}" for part in PARTS))
    for kind in args.weights:
        parts = bytes_by_part(empty_model(config), kind)
        print(f"{kind:>8s} " + " ".join(f"{parts[part] / 1e9:21.3f}" for part in PARTS))
    print(f"{'kind':>8s} {'batch':>5s} {'frames':>6s} {'chunk':>5s} {'prompt':>7s} {'weights':>8s} {'cache':>6s} {'peak':>6s}")
    for kind in args.weights:
        for batch_size in args.batch_sizes:
            for frames in args.frames:
                for chunk in args.chunks:
                    weights, cache, peak, tokens = estimate(config, batch_size, frames, chunk, args.new_tokens, kind)
                    numbers = f"{batch_size:5d} {frames:6d} {chunk:5d} {tokens:7d} {weights:8.2f} {cache:6.2f} {peak:6.2f}"
                    print(f"{kind:>8s} {numbers}", flush=True)


if __name__ == "__main__":
    main()
