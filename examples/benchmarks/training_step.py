# SPDX-License-Identifier: Apache-2.0
"""Measures time and memory of the parts of a training step, and how both grow with frames and batch size.

    python examples/benchmarks/training_step.py              # on a GPU the published sizes in bf16, else a narrow model in fp32
    python examples/benchmarks/training_step.py --estimate   # estimated peak memory of the published sizes; needs no GPU

The step is that of stage 2: LoRA of rank 128, packer, input embeddings and coordinate embeddings are trained in float32; decoder layers
are recomputed in the backward pass; AdamW. A sample is a video of 100 frames (2,520 tokens) with 200 tokens of text, of which 150 are
supervised. The narrow model for CPUs has the published numbers of tokens with smaller hidden sizes.

`--estimate` runs the same step on tensors without data and adds up the live ones. It does not include fragmentation and rounding of the
allocator, workspaces of kernels (cuBLAS, flash attention), the CUDA context (about 0.5 GB), and DDP's buckets (as large as the
gradients). Layer norms are computed in float32, as autocast does on a GPU.
"""

import argparse
import time
import warnings
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import transformers
from packaging.version import Version
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration
from llava_st_hf.training import prepare_model_for_training, vision_memory


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
    # transformers 5.24 renamed the method.
    renamed = Version(transformers.__version__) >= Version("5.24")
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    return model.train()


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


# ============================================================ Estimating


class LiveBytes(TorchDispatchMode):
    """
    Adds up the bytes of live storages by group, and records the peak.

    Operations whose result depends on data return that of a batch of `make_batch`: no padding, as many features as tokens, and
    `supervised` supervised tokens.
    """

    def __init__(self, supervised: int):
        super().__init__()
        self.supervised = supervised
        self.parts = ["rest"]
        self.sizes: dict[int, int] = {}
        self.labels: dict[int, tuple[str, str]] = {}
        self.now: Counter = Counter()
        self.total = 0
        self.reset_peak()

    @contextmanager
    def part(self, name: str):
        self.parts.append(name)
        try:
            yield
        finally:
            self.parts.pop()

    def reset_peak(self) -> None:
        self.peak, self.at_peak, self.peak_part = self.total, Counter(self.now), self.parts[-1]

    def _forget(self, key: int) -> None:
        nbytes, label = self.sizes.pop(key), self.labels.pop(key)
        self.now[label] -= nbytes
        self.total -= nbytes

    def name(self, group: str, tensors) -> None:
        """Assigns tensors to another group."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self.sizes:
                self.now[self.labels[key]] -= self.sizes[key]
                self.labels[key] = (group, "")
                self.now[self.labels[key]] += self.sizes[key]

    def _numbers(self, indices: list) -> list:
        """Replaces Boolean masks by row and column indices."""
        numbers = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                numbers += [index.new_empty(self.supervised, dtype=torch.long) for _ in range(index.ndim)]
            else:
                numbers.append(index)
        return numbers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = func.overloadpacket.__name__
        if operation == "_local_scalar_dense":
            return True
        if operation == "nonzero":
            args, func = ([self.supervised, args[0].ndim],), torch.ops.aten.empty.memory_format
            kwargs = {"dtype": torch.long, "device": "cpu"}
        if operation in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], self._numbers(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    shape = f"{operation} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                    self.sizes[key], self.labels[key] = storage.nbytes(), (f"made in {self.parts[-1]}", shape)
                    self.now[self.labels[key]] += self.sizes[key]
                    self.total += self.sizes[key]
                    weakref.finalize(storage, self._forget, key).atexit = False
        if self.total > self.peak:
            self.reset_peak()
        return out


def estimate(limit_gb: float, videos: int, accumulation: int, details: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    plain_norm = F.layer_norm

    def norm_in_float32(states, shape, weight=None, bias=None, eps=1e-5):
        return plain_norm(states.float(), shape, None if weight is None else weight.float(), None if bias is None else bias.float(), eps)

    def free_bytes(device):
        return max(0, int(limit_gb * 1e9 - live.total))  # of a GPU of this size

    model = build("meta", False)
    live = LiveBytes(videos * SUPERVISED_TOKENS)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "layer_norm", norm_in_float32))
        stack.enter_context(mock.patch.object(vision_memory, "free_bytes", free_bytes))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(live)
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake = torch.empty(weight.shape, dtype=weight.dtype)
                    module._parameters[name] = torch.nn.Parameter(fake, weight.requires_grad)
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
        optimizer = build_optimizer(model)
        name_parts(model, live.part)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda owner: live.name("gradients", [owner.grad]))
        batch = make_batch(model.config, videos, 100, "cpu", torch.bfloat16)
        print(f"Published sizes, batch {videos} of 100 frames, bfloat16 with float32 trained weights; GB = 1e9 bytes")
        for step in range(2):  # the first allocates the optimizer state
            for micro in range(accumulation):
                for group, tensors in parameter_groups(model, optimizer).items():
                    live.name(group, tensors)
                live.reset_peak()
                micro_step(model, batch, live.part, "cpu", half=True)
                if step:
                    first = "no gradients yet" if micro == 0 else "on top of the gradients before it"
                    report(live, f"Forward and backward {micro + 1} of {accumulation}, {first}", limit_gb, details)
            live.reset_peak()
            update(model, optimizer, live.part)
            if step:
                report(live, "Clipping and update", limit_gb, details)


def report(live: LiveBytes, title: str, limit_gb: float, details: bool) -> None:
    groups: Counter = Counter()
    for (group, _), nbytes in live.at_peak.items():
        groups[group] += nbytes
    verdict = f"{live.peak / 1e9 / limit_gb:.0%} of {limit_gb:g} GB"
    print(f"\n{title}: {live.peak / 1e9:.2f} GB at the peak ({verdict}), reached in: {live.peak_part}")
    for group, nbytes in groups.most_common():
        if nbytes >= 5e6:
            print(f"  {group:28s} {nbytes / 1e9:7.2f} GB {nbytes / live.peak:6.1%}")
    if details:
        for (group, shape), nbytes in live.at_peak.most_common(30):
            if shape:
                print(f"    {nbytes / 1e9:6.2f} GB  {group}: {shape}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--estimate", action="store_true", help="estimate the peak memory of the published sizes, without a GPU")
    parser.add_argument("--limit", type=float, default=40, help="memory of the GPU that is estimated, in GB")
    parser.add_argument("--videos", type=int, default=2, help="samples of a batch that is estimated")
    parser.add_argument("--accumulation", type=int, default=2, help="batches to a step that is estimated")
    parser.add_argument("--details", action="store_true", help="with the tensors that the estimated peak is made of")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
    if args.estimate:
        estimate(args.limit, args.videos, args.accumulation, args.details)
    else:
        measure(args.repeats)


if __name__ == "__main__":
    main()
