# SPDX-License-Identifier: Apache-2.0
"""Compares the time of a decode step with Qwen2 of transformers with the same weights.

    python examples/benchmarks/decode_step.py                # the shape of Qwen2-0.5B, fp32 on CPU, 2,600 tokens of context
    python examples/benchmarks/decode_step.py --hidden-size 3584 --layers 28 --device cuda --dtype bfloat16

The steps of the two models alternate, so that other load on the machine affects both.
"""

import argparse
import statistics
import time

import torch
from transformers import DynamicCache, Qwen2ForCausalLM

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration
from llava_st_hf.model.cache_name_llava_st import CACHE_NAME


def build(args) -> tuple[LlavaSTForConditionalGeneration, Qwen2ForCausalLM]:
    """Returns LLaVA-ST and a Qwen2 that shares its decoder and head."""
    config = LlavaSTConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 384,
            "patch_size": 14,
        },
        text_config={
            "hidden_size": args.hidden_size,
            "intermediate_size": args.hidden_size * 5,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.hidden_size // 64,
            "num_key_value_heads": 2,
        },
        packer_hidden_size=64,
    )
    with torch.device(args.device):
        ours = LlavaSTForConditionalGeneration(config).to(getattr(torch, args.dtype)).eval()
    with torch.device("meta"):
        stock = Qwen2ForCausalLM(config.text_config).eval()
    stock.model, stock.lm_head = ours.model.language_model, ours.lm_head
    return ours, stock


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--context", type=int, default=2600)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.manual_seed(0)
    models = dict(zip(("LLaVA-ST", "Qwen2"), build(args), strict=True))
    prompt = torch.randint(1000, (1, args.context), device=args.device)
    token = torch.randint(1000, (1, 1), device=args.device)
    caches = {}
    for name, model in models.items():
        caches[name] = DynamicCache(config=model.config.get_text_config())
        model(input_ids=prompt, logits_to_keep=1, **{CACHE_NAME: caches[name]})

    times: dict[str, list[float]] = {name: [] for name in models}
    for step in range(args.steps + 5):
        order = list(models.items())[:: 1 if step % 2 else -1]
        for name, model in order:
            start = time.perf_counter()
            model(input_ids=token, use_cache=True, **{CACHE_NAME: caches[name]}).logits.argmax().item()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:9s} {1000 * median:8.2f} ms per step (median of {args.steps})")
    print(f"LLaVA-ST / Qwen2: {medians['LLaVA-ST'] / medians['Qwen2']:.3f}")


if __name__ == "__main__":
    main()
