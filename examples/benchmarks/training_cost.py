# SPDX-License-Identifier: Apache-2.0
"""Estimates memory, floating point operations and memory traffic of a training step of the published sizes, on tensors without data.

`python examples/benchmarks/training_step.py --estimate` calls it; see there for the step.

Live tensors are added up. Not included are fragmentation and rounding of the allocator, workspaces of kernels (cuBLAS, flash attention), the
CUDA context (about 0.5 GB), and DDP's buckets (as large as the gradients). Layer norms are computed in float32 where autocast does it on a GPU.

The seconds of an operation are the larger one of its floating point operations at the rate of matrix products, and of the bytes that it reads
and writes at the bandwidth of the memory: those of a GPU that never waits for the host, with each operation as one kernel.
"""

import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


MATMUL_RATE = 769e12  # FLOP/s of bfloat16 matrix products, measured on an H200
BANDWIDTH = 4.41e12  # bytes/s of its memory, measured

class StepCost(TorchDispatchMode):
    """
    Adds up the bytes of live storages by group, and records the peak; counts operations and memory traffic of each part.

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
        self.flops: Counter = Counter()  # part → floating point operations
        self.seconds: Counter = Counter()  # part → lower bound of the time
        self.reset_peak()

    def reset_costs(self) -> None:
        self.flops.clear()
        self.seconds.clear()

    def add_cost(self, flops: float, traffic: float) -> None:
        """Adds an operation of `flops` floating point operations that reads and writes `traffic` bytes."""
        part = self.parts[-1]
        if part == "backward" and torch.is_grad_enabled():
            part = "recomputation"  # the backward pass itself runs without gradients
        self.flops[part] += flops
        self.seconds[part] += max(flops / MATMUL_RATE, traffic / BANDWIDTH)

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

    def _count(self, func, args, kwargs, out) -> None:
        results = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        packet = func.overloadpacket
        aliased = {tensor.untyped_storage()._cdata for tensor in given}
        if not func._schema.is_mutable and all(tensor.untyped_storage()._cdata in aliased for tensor in results):
            return  # a view
        if packet in (torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided, torch.ops.aten.new_empty):
            return
        flops = 0.0
        if packet is _ATTENTION:
            query, key, value, _, causal = (*args, 0.0, False)[:5]
            flops = sdpa_flop_count(query.shape, key.shape, value.shape) / (2 if causal else 1)
        elif packet is _ATTENTION_BACKWARD:
            _, query, key, value, _, _, _, causal = args[:8]
            flops = 2.5 * sdpa_flop_count(query.shape, key.shape, value.shape) / (2 if causal else 1)
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
        self.add_cost(flops, sum(tensor.numel() * tensor.itemsize for tensor in (*given, *results)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = func.overloadpacket.__name__
        if operation in ("_local_scalar_dense", "equal"):
            return True
        if operation == "nonzero":
            args, func = ([self.supervised, args[0].ndim],), torch.ops.aten.empty.memory_format
            kwargs = {"dtype": torch.long, "device": "cpu"}
        if operation in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], self._numbers(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        self._count(func, args, kwargs or {}, out)
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


from training_step import *
from training_step import build, build_optimizer, name_parts, parameter_groups, make_batch, micro_step, update
from llava_st_hf.training import vision_memory
SUPERVISED_TOKENS=150
def estimate(limit_gb: float, videos: int, accumulation: int, details: bool) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    plain_norm = F.layer_norm

    def norm_in_float32(states, shape, weight=None, bias=None, eps=1e-5):
        if not torch.is_autocast_enabled("cpu"):
            return plain_norm(states, shape, weight, bias, eps)
        return plain_norm(states.float(), shape, None if weight is None else weight.float(), None if bias is None else bias.float(), eps)

    def free_bytes(device):
        return max(0, int(limit_gb * 1e9 - live.total))  # of a GPU of this size

    model = build("meta", False)
    live = StepCost(videos * SUPERVISED_TOKENS)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "layer_norm", norm_in_float32))
        stack.enter_context(mock.patch.object(vision_memory, "free_bytes", free_bytes))
        stack.enter_context(mock.patch.object(F, "dropout", lambda x, p=0.5, training=True, inplace=False: torch.native_dropout(x, p, training)[0] if training and p else x))
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
            if step:
                for part in live.flops: print(part, f"{live.flops[part]/1e12:.1f} TFLOP {live.flops[part]/MATMUL_RATE:.3f} s; {live.seconds[part]:.3f} s")
                print(sum(live.flops.values())/MATMUL_RATE, sum(live.seconds.values()))
            live.reset_costs()
            live.reset_peak()
            update(model, optimizer, live.part)
            if step:
                report(live, "Clipping and update", limit_gb, details)


def report(live: StepCost, title: str, limit_gb: float, details: bool) -> None:
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


