# SPDX-License-Identifier: Apache-2.0
"""Measures time and memory of the parts of a training step, how both grow with frames and batch size, and what makes it faster.

    python examples/benchmarks/training_step.py              # on a GPU the published sizes in bf16, else a narrow model in fp32
    python examples/benchmarks/training_step.py --variants   # seconds, memory, share of the FLOP bound with each option
    python examples/benchmarks/training_step.py --estimate   # memory, FLOP and time bounds of the published sizes; needs no GPU

The step is that of stage 2: LoRA of rank 128, packer, input embeddings and coordinate embeddings are trained in float32; decoder layers
are recomputed in the backward pass; AdamW. A sample is a video of 100 frames (2,520 tokens) with 200 tokens of text, of which 150 are
supervised. The narrow model for CPUs has the published numbers of tokens with smaller hidden sizes.

`--estimate` runs the same step on tensors without data and adds up the live ones. It does not include fragmentation and rounding of the
allocator, workspaces of kernels (cuBLAS, flash attention), the CUDA context (about 0.5 GB), and DDP's buckets (as large as the
gradients). The compiled vision encoder is not part of it.
"""

import argparse
import time
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import transformers
from packaging.version import Version
from training_cost import (
    BANDWIDTH,
    MATMUL_RATE,
    OperationCosts,
    StepCosts,
    allocate,
    count_liger_kernels,
    tensors_without_data,
)

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration
from llava_st_hf.model import vision_llava_st
from llava_st_hf.model.compilation_llava_st import compile_encoder_layers
from llava_st_hf.training import prepare_model_for_training, vision_memory
from llava_st_hf.training.liger_kernels import apply_liger_kernels
from llava_st_hf.training.selective_checkpointing import enable_selective_checkpointing
from llava_st_hf.training.trainable import uncast_lora_inputs


TRAINABLE_MODULES = ["vision", "packer", "LLM forward", "loss", "backward", "optimizer", "rest"]
TEXT_TOKENS, SUPERVISED_TOKENS = 200, 150
PIXELS = {"image_size": 384, "patch_size": 14}
NARROW = {
    "vision_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1, **PIXELS},
    "text_config": {
        "vocab_size": 16384,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "packer_hidden_size": 128,
}

# ============================================================ The step


def build(device: str, narrow: bool):
    """Builds a model with random weights and the trainable modules of stage 2."""
    half = torch.float32 if narrow else torch.bfloat16
    with torch.device(device):
        base = LlavaSTForConditionalGeneration._from_config(LlavaSTConfig(**NARROW) if narrow else LlavaSTConfig(), dtype=half)
        model = prepare_model_for_training(base, ["packer", "input_embeddings", "coordinate_embeddings", "lora"], lora_r=128)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # as LlavaSTTrainer does
    enable_checkpointing(model)
    return model.train()


def enable_checkpointing(model) -> None:
    # transformers 5.24 renamed the method.
    renamed = Version(transformers.__version__) >= Version("5.24")
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def build_optimizer(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), lr=2e-5, fused=True)


def make_batch(config: LlavaSTConfig, videos: int, frames: int, device: str, dtype: torch.dtype) -> dict:
    """Builds samples of one video: 25 tokens, the video, 25 tokens, and an answer in which every fourth token is a coordinate."""
    fast, slow = frames * config.fast_grid_size**2, -(-frames // config.packer_temporal_stride) * config.packed_grid_size**2
    patch, bare = config.video_token_id, TEXT_TOKENS - SUPERVISED_TOKENS
    video = [config.video_start_token_id, *[patch] * (fast - 2), config.video_end_token_id]
    video += [config.slow_video_start_token_id, *[patch] * (slow - 2), config.slow_video_end_token_id]
    row = torch.tensor([*range(1000, 1000 + bare // 2), *video, *range(1100, 1100 + bare - bare // 2 + SUPERVISED_TOKENS)])
    row[-SUPERVISED_TOKENS::4] = config.coordinate_start_token_id + 7
    positions = torch.full(row.shape, float("nan"))
    positions[-SUPERVISED_TOKENS::4] = 0.0753
    labels = torch.full_like(row, -100)
    labels[-SUPERVISED_TOKENS:] = row[-SUPERVISED_TOKENS:]
    batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": labels, "coordinate_values": positions}
    batch = {name: value.to(device).repeat(videos, 1) for name, value in batch.items()}
    size = config.vision_config.image_size
    batch["pixel_values_videos"] = torch.zeros(videos, frames, 3, size, size, device=device, dtype=dtype)
    return batch


def micro_step(model, batch: dict, part, device: str, half: bool) -> None:
    """Runs forward and backward pass; `part(name)` is a context manager around each part."""
    with torch.autocast(device, torch.bfloat16, enabled=half):
        items = SUPERVISED_TOKENS * len(batch["input_ids"])
        chunk_size = vision_memory.choose_vision_chunk_size(model.config.vision_config, batch, sharded=False)  # as LlavaSTTrainer does it
        loss = model(**batch, use_cache=False, num_items_in_batch=items, vision_chunk_size=chunk_size).loss
    with part("backward"):
        loss.backward()


def update(model, optimizer, part) -> None:
    with part("optimizer"):
        torch.nn.utils.clip_grad_norm_([parameter for parameter in model.parameters() if parameter.grad is not None], 1.0)
        optimizer.step()
        model.zero_grad()


def name_parts(model, part) -> None:
    """Wraps the modules of the forward pass in `part`."""
    whole = model.get_base_model()

    def watch(owner, method: str, name: str) -> None:
        original = getattr(owner, method)

        def watched(*args, **kwargs):
            with part(name):
                return original(*args, **kwargs)

        setattr(owner, method, watched)

    watch(whole.model, "_patch_features", "vision")
    watch(whole.model, "_add_positions", "packer")
    watch(whole.model, "_video_tokens", "packer")
    watch(whole.model.language_model, "forward", "LLM forward")
    watch(whole, "_loss", "loss")


def parameter_groups(model, optimizer) -> dict[str, list[torch.Tensor]]:
    """Returns weights, gradients and optimizer state, as far as they are allocated."""
    groups: dict[str, list[torch.Tensor]] = {"frozen weights": [], "trained weights, float32": [], "gradients": []}
    for parameter in model.parameters():
        groups["trained weights, float32" if parameter.requires_grad else "frozen weights"].append(parameter)
        if parameter.grad is not None:
            groups["gradients"].append(parameter.grad)
    groups["optimizer state"] = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return groups


# ============================================================ Measuring


class Clock:
    """Seconds of each part; nested parts count in the inner one only. On a GPU wall time with synchronization; on a CPU the CPU time of all
    cores, which depends less on other load than wall time."""

    def __init__(self, device: str):
        self.device, self.seconds, self.open = device, Counter(), ["rest"]
        self.last = self._now()

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _pass(self) -> None:
        now = self._now()
        self.seconds[self.open[-1]] += now - self.last
        self.last = now

    @contextmanager
    def __call__(self, name: str):
        self._pass()
        self.open.append(name)
        try:
            yield
        finally:
            self._pass()
            self.open.pop()

    def take(self) -> Counter:
        """Returns the time since the last call."""
        self._pass()
        seconds, self.seconds = self.seconds, Counter()
        return seconds


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak to the current memory


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_steps(model, optimizer, clock: Clock, videos: int, frames: int, repeats: int) -> tuple[dict[str, float], int, dict[str, int]]:
    """Returns the minimum seconds of each part, the peak memory in bytes, and the bytes of each group of weights after the step."""
    device, half = clock.device, model.dtype == torch.bfloat16
    batch = make_batch(model.config, videos, frames, device, model.dtype)
    runs: list[Counter] = []
    for _ in range(repeats + 1):  # the first is a warm-up
        reset_peak(device)
        clock.take()
        micro_step(model, batch, clock, device, half)
        sizes = {name: sum(tensor.nbytes for tensor in tensors) for name, tensors in parameter_groups(model, optimizer).items()}
        update(model, optimizer, clock)
        runs.append(clock.take())
    times = {part: min(run[part] for run in runs[1:]) for part in TRAINABLE_MODULES}
    return times, peak_bytes(device), sizes


def measure(repeats: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build(device, device == "cpu")
    optimizer = build_optimizer(model)
    clock = Clock(device)
    name_parts(model, clock)
    what = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"torch {torch.__version__}, {what}; {size:,.0f} million parameters in {model.dtype}; minimum of {repeats} steps")

    times, peak, sizes = measure_steps(model, optimizer, clock, 2, 100, repeats)
    total = sum(times.values())
    print(f"\nTwo videos of 100 frames: {total:.3f} s")
    for part in TRAINABLE_MODULES:
        print(f"  {part:28s} {times[part]:8.3f} s {times[part] / total:7.1%}")
    print(f"Peak: {peak / 2**20:,.0f} MiB{'' if device == 'cuda' else ' resident, libraries included'}")
    for name, nbytes in {**sizes, "activations and the rest": peak - sum(sizes.values())}.items():
        print(f"  {name:28s} {nbytes / 2**20:8,.0f} MiB {nbytes / peak:6.1%}")

    print("\nSeconds, and their ratio to one video of 100 frames")
    print(
        f"{'frames':>6s} {'batch':>5s} {'tokens':>7s} "
        + " ".join(f"{part:>16s}" for part in TRAINABLE_MODULES[:-1])
        + f"{'step':>17s}   peak"
    )
    results = {}
    for videos, frames in ((1, 100), (1, 25), (1, 50), (1, 200), (2, 100), (4, 100)):  # the baseline first
        results[videos, frames], peak, _ = measure_steps(model, optimizer, clock, videos, frames, repeats)
        base, times = results[1, 100], results[videos, frames]
        cells = [f"{times[part]:9.3f} ({times[part] / base[part]:4.2f})" for part in TRAINABLE_MODULES[:-1]]
        step = f"{sum(times.values()):9.3f} ({sum(times.values()) / sum(base.values()):4.2f})"
        tokens = videos * (frames * model.config.fast_grid_size**2 + -(-frames // 5) * model.config.packed_grid_size**2 + TEXT_TOKENS)
        print(f"{frames:6d} {videos:5d} {tokens:7d} {' '.join(cells)} {step} {peak / 2**20:6,.0f} MiB", flush=True)


# ============================================================ Variants


@dataclass(frozen=True)
class Variant:
    """Options of a step. Each variant has those of the one before it."""

    name: str
    tower_in_autocast: bool = False
    lora_inputs_in_float32: bool = False
    compiled_tower: bool = False
    liger: bool = False
    kept: str | None = None
    checkpointing: bool = True


VARIANTS = (
    Variant("version 0.1", tower_in_autocast=True, lora_inputs_in_float32=True),
    Variant("vision encoder without autocast", lora_inputs_in_float32=True),
    Variant("LoRA inputs in bfloat16"),
    Variant("compile_vision_tower", compiled_tower=True),
    Variant("use_liger_kernel", compiled_tower=True, liger=True),
    Variant("selective_checkpointing: reductions", compiled_tower=True, liger=True, kept="reductions"),
    Variant("selective_checkpointing: matmuls", compiled_tower=True, liger=True, kept="matmuls"),
    Variant("no checkpointing", compiled_tower=True, liger=True, checkpointing=False),
)


@contextmanager
def applied(variant: Variant, model):
    """Sets the options of a variant that can be taken back, for the block."""
    with ExitStack() as stack:
        if variant.tower_in_autocast:
            stack.enter_context(mock.patch.object(vision_llava_st, "_keeps_precision", return_value=False))
        if not variant.lora_inputs_in_float32:
            stack.enter_context(uncast_lora_inputs(model))
        enable_checkpointing(model)
        if variant.kept:
            enable_selective_checkpointing(model, variant.kept)
        if not variant.checkpointing:
            for layer in model.get_base_model().model.language_model.layers:
                layer.gradient_checkpointing = False
        yield


def peak_rates(device: str) -> tuple[float, float]:
    """Measures FLOP/s of a product of bfloat16 matrices, and bytes/s of a copy, on a GPU."""

    def seconds(run) -> float:
        times = []
        for _ in range(10):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    left, right = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    data = torch.empty(2**30, device=device, dtype=torch.uint8)
    target = torch.empty_like(data)
    return 2 * 8192**3 / seconds(lambda: left @ right), 2 * data.nbytes / seconds(lambda: target.copy_(data))


def seconds_of_step(model, optimizer, batch: dict, device: str, repeats: int) -> float:
    """Returns the mean seconds of a step, in which the host waits only where training does."""
    now = time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
        now = time.perf_counter
    start = now()
    for _ in range(repeats):
        micro_step(model, batch, lambda name: nullcontext(), device, model.dtype == torch.bfloat16)
        update(model, optimizer, lambda name: nullcontext())
    if device == "cuda":
        torch.cuda.synchronize()
    return (now() - start) / repeats


def measure_variants(repeats: int) -> None:
    """Prints seconds, peak memory and share of the FLOP bound of each variant that runs on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build(device, device == "cpu")
    optimizer, clock, costs = build_optimizer(model), Clock(device), OperationCosts()
    parts: list = [clock]
    name_parts(model, lambda name: parts[-1](name))
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}; mean of {repeats} steps, batch 2")
    batch = make_batch(model.config, 2, 100, device, model.dtype)
    parts.append(costs.part)
    with applied(VARIANTS[0], model), costs:
        micro_step(model, batch, costs.part, device, model.dtype == torch.bfloat16)
    parts.pop()
    model.zero_grad()
    flops = sum(costs.flops.values()) - costs.flops["recomputation"]
    bound = None
    if device == "cuda":
        rate, bandwidth = peak_rates(device)
        bound = flops / rate
        print(f"{rate / 1e12:.0f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s measured")
    print(f"{flops / 1e12:.1f} TFLOP without recomputation" + (f": at least {bound:.3f} s" if bound else ""))
    print(f"{'variant':38s} {'seconds':>8s} {'peak':>10s} {'bound / seconds':>16s}   parts")
    compiled = patched = False
    for variant in VARIANTS:
        if variant.name == "use_liger_kernel" and device == "cpu":
            print(f"{variant.name:38s} needs a GPU")
            continue
        if variant.compiled_tower and not compiled:
            compile_encoder_layers(model.get_base_model().model.vision_tower)
            compiled = True
        if variant.liger and not patched and device == "cuda":
            # RoPE in the memory of the projections' results does not go with results that are kept.
            apply_liger_kernels(model.get_base_model(), rope=False)
            patched = True
        del parts[1:]
        try:
            with applied(variant, model):
                times, peak, _ = measure_steps(model, optimizer, clock, 2, 100, 1)
                parts.append(lambda name: nullcontext())
                total = seconds_of_step(model, optimizer, batch, device, repeats)
        except torch.OutOfMemoryError:
            print(f"{variant.name:38s} out of memory")
            optimizer.zero_grad()
            continue
        share = f"{bound / total:16.0%}" if bound else f"{'':16s}"
        row = ", ".join(f"{part} {seconds:.3f}" for part, seconds in times.items())
        print(f"{variant.name:38s} {total:8.3f} {peak / 1e9:7.1f} GB {share}   {row}", flush=True)


# ============================================================ Estimating


def estimate_step(variant: Variant, limit_gb: float, videos: int, accumulation: int, print_peaks: bool, details: bool) -> StepCosts:
    """Runs the second step of a variant without data. Returns its costs, with the largest peak as `peak`."""
    model = build("meta", False)
    costs = StepCosts(videos * SUPERVISED_TOKENS)
    with tensors_without_data(costs, limit_gb):
        allocate(model)
        if variant.liger:
            count_liger_kernels(model.get_base_model().model.language_model, costs)
        optimizer = build_optimizer(model)
        name_parts(model, costs.part)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda owner: costs.name("gradients", [owner.grad]))
        batch = make_batch(model.config, videos, 100, "cpu", torch.bfloat16)
        largest = 0
        with applied(variant, model):
            for step in range(2):  # the first allocates the optimizer state
                costs.reset_costs()
                for micro in range(accumulation):
                    for group, tensors in parameter_groups(model, optimizer).items():
                        costs.name(group, tensors)
                    costs.reset_peak()
                    micro_step(model, batch, costs.part, "cpu", half=True)
                    largest = max(largest, costs.peak)
                    if step and print_peaks:
                        first = "no gradients yet" if micro == 0 else "on top of the gradients before it"
                        report(costs, f"Forward and backward {micro + 1} of {accumulation}, {first}", limit_gb, details)
                costs.reset_peak()
                update(model, optimizer, costs.part)
                if step and print_peaks:
                    report(costs, "Clipping and update", limit_gb, details)
    costs.peak = max(largest, costs.peak)
    return costs


def estimate(limit_gb: float, videos: int, accumulation: int, details: bool) -> None:
    print(f"Published sizes, batch {videos} of 100 frames, bfloat16 with float32 trained weights; GB = 1e9 bytes")
    estimate_step(VARIANTS[2], limit_gb, videos, accumulation, True, details)
    print(f"\nOne step of {accumulation} batches; at {MATMUL_RATE / 1e12:.0f} TFLOP/s and {BANDWIDTH / 1e12:.2f} TB/s")
    print(f"{'variant':38s} {'TFLOP: forward':>15s} {'recomputed':>11s} {'backward':>9s} {'bound':>8s} {'peak':>9s} {'host waits':>11s}")
    for variant in VARIANTS:
        if variant.name == "compile_vision_tower":
            continue
        costs = estimate_step(variant, limit_gb, videos, accumulation, False, False)
        backward, again = costs.flops["backward"], costs.flops["recomputation"]
        forward = sum(costs.flops.values()) - backward - again
        cells = f"{forward / 1e12:15.1f} {again / 1e12:11.1f} {backward / 1e12:9.1f} {sum(costs.seconds.values()):6.3f} s"
        print(f"{variant.name:38s} {cells} {costs.peak / 1e9:6.1f} GB {sum(costs.synchronizations.values()):11d}", flush=True)
        print("    " + ", ".join(f"{part} {seconds:.3f} s" for part, seconds in costs.seconds.items()), flush=True)


def report(costs: StepCosts, title: str, limit_gb: float, details: bool) -> None:
    groups: Counter = Counter()
    for (group, _), nbytes in costs.at_peak.items():
        groups[group] += nbytes
    verdict = f"{costs.peak / 1e9 / limit_gb:.0%} of {limit_gb:g} GB"
    print(f"\n{title}: {costs.peak / 1e9:.2f} GB at the peak ({verdict}), reached in: {costs.peak_part}")
    for group, nbytes in groups.most_common():
        if nbytes >= 5e6:
            print(f"  {group:28s} {nbytes / 1e9:7.2f} GB {nbytes / costs.peak:6.1%}")
    if details:
        for (group, shape), nbytes in costs.at_peak.most_common(30):
            if shape:
                print(f"    {nbytes / 1e9:6.2f} GB  {group}: {shape}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", action="store_true", help="measure the step with each option that makes it faster")
    parser.add_argument("--estimate", action="store_true", help="estimate memory and time bounds of the published sizes, without a GPU")
    parser.add_argument("--limit", type=float, default=40, help="memory of the GPU that is estimated, in GB")
    parser.add_argument("--videos", type=int, default=2, help="samples of a batch that is estimated")
    parser.add_argument("--accumulation", type=int, default=2, help="batches to a step that is estimated")
    parser.add_argument("--details", action="store_true", help="with the tensors that the estimated peak is made of")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
    if args.estimate:
        estimate(args.limit, args.videos, args.accumulation, args.details)
    elif args.variants:
        measure_variants(args.repeats)
    else:
        measure(args.repeats)


if __name__ == "__main__":
    main()
