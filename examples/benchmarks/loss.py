# SPDX-License-Identifier: Apache-2.0
"""Compares memory and time of the loss with full-vocabulary logits and dense soft targets.

    python examples/benchmarks/loss.py                       # 152k tokens of vocabulary, 2,600 supervised positions, fp32
    python examples/benchmarks/loss.py --hidden-size 3584 --device cuda --dtype bfloat16

Each variant runs in its own process. Memory is the peak of forward and backward pass minus the inputs and the gradients that both return.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from llava_st_hf.model.coordinates_llava_st import propagation_matrix
from llava_st_hf.model.loss_llava_st import coordinate_cross_entropy


NUM_COORDINATES = 300

# ============================================================ The two losses


def chunked(hidden, weight, lower, upper, share):
    matrix = propagation_matrix([100, 100, 100], device=hidden.device)
    loss, _ = coordinate_cross_entropy(hidden, weight, lower, upper, share, matrix, len(weight) - NUM_COORDINATES)
    return loss / len(hidden)


def dense(hidden, weight, lower, upper, share):
    targets = torch.zeros(len(hidden), len(weight), device=hidden.device)
    targets.scatter_add_(1, lower[:, None], (1 - share)[:, None])
    targets.scatter_add_(1, upper[:, None], share[:, None])
    coordinates = weight[-NUM_COORDINATES:]
    mixed = propagation_matrix([100, 100, 100], device=hidden.device).to(weight.dtype) @ coordinates
    weight = torch.cat((weight[:-NUM_COORDINATES], coordinates + mixed - mixed.detach()))
    logits = F.linear(hidden, weight).float()
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()


# ============================================================ Measuring


def peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args) -> dict:
    torch.manual_seed(0)
    make = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    hidden = torch.randn(args.tokens, args.hidden_size, **make).requires_grad_()
    # Filled in place: a temporary tensor would raise the peak before the measurement.
    weight = torch.empty(args.vocab_size, args.hidden_size, **make).normal_(std=0.02).requires_grad_(args.train_head)
    lower = torch.randint(args.vocab_size - 1, (args.tokens,), device=args.device)
    lower[::4] = args.vocab_size - NUM_COORDINATES + torch.arange(len(lower[::4]), device=args.device) % 99
    share = torch.zeros(args.tokens, device=args.device)
    share[::4] = 0.3
    upper = lower + (share > 0)
    # Twice: the first pass initializes libraries, whose memory is also part of the peak in training.
    before = peak_bytes(args.device)
    for _ in range(2):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        loss = {"chunked": chunked, "dense": dense}[args.variant](hidden, weight, lower, upper, share)
        loss.backward()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    gradients = hidden.nbytes + (weight.nbytes if args.train_head else 0)
    norms = [hidden.grad.float().norm().item()] + ([weight.grad.float().norm().item()] if args.train_head else [])
    return {"loss": loss.item(), "norms": norms, "seconds": seconds, "bytes": peak_bytes(args.device) - before - gradients}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=151960)
    parser.add_argument("--tokens", type=int, default=2600)
    parser.add_argument("--hidden-size", type=int, default=896)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--train-head", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    print(f"vocabulary {args.vocab_size}, {args.tokens} positions, hidden {args.hidden_size}, {args.dtype} on {args.device}")
    for train_head in (False, True):
        results = {}
        for variant in ("dense", "chunked"):
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, *["--train-head"] * train_head]
            results[variant] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"head {'trained' if train_head else 'frozen'}:")
        for variant, result in results.items():
            norms = ", ".join(f"{norm:.6f}" for norm in result["norms"])
            figures = f"{result['bytes'] / 2**20:6.0f} MiB  {result['seconds']:6.2f} s  loss {result['loss']:.5f}"
            print(f"  {variant:8s} {figures}  gradient norms {norms}")
        ratio = {key: results["chunked"][key] / results["dense"][key] for key in ("bytes", "seconds")}
        print(f"  chunked / dense: memory {ratio['bytes']:.3f}, time {ratio['seconds']:.2f}")


if __name__ == "__main__":
    main()
