# SPDX-License-Identifier: Apache-2.0
"""Counts operations, memory traffic, host synchronizations and live memory of a training step; `training_step.py` prints them.

The seconds of an operation are the larger one of its floating point operations at the rate of matrix products, and of the bytes that it
reads and writes at the bandwidth of the memory. Their sum is a lower bound of the time on a GPU that runs each operation as one kernel and
never waits for the host.
"""

import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


MATMUL_RATE = 769e12  # FLOP/s of bfloat16 matrix products, measured on an H200
BANDWIDTH = 4.41e12  # bytes/s of its memory, measured

_aten = torch.ops.aten
_FORWARD_PER_ATTENTION = {  # operations of attention → their operations relative to those of its forward pass
    _aten._scaled_dot_product_flash_attention_for_cpu: 1,
    _aten._scaled_dot_product_flash_attention: 1,
    _aten._scaled_dot_product_efficient_attention: 1,
    _aten._scaled_dot_product_cudnn_attention: 1,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: 2.5,
    _aten._scaled_dot_product_flash_attention_backward: 2.5,
    _aten._scaled_dot_product_efficient_attention_backward: 2.5,
    _aten._scaled_dot_product_cudnn_attention_backward: 2.5,
}
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty)
# Operations for which the host waits until a GPU has computed its queue: their result is a number on the host, or has a size that depends
# on data. `lift_fresh` begins a tensor of numbers of Python, which is then copied to the device.
_SYNCHRONIZING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "masked_scatter_backward", "lift_fresh")


class OperationCosts(TorchDispatchMode):
    """Adds up floating point operations, time bounds and host synchronizations of each part of a step."""

    def __init__(self):
        super().__init__()
        self.parts = ["rest"]
        self.reset_costs()

    def reset_costs(self) -> None:
        self.flops: Counter = Counter()
        self.seconds: Counter = Counter()
        self.synchronizations: Counter = Counter()

    @contextmanager
    def part(self, name: str):
        self.parts.append(name)
        try:
            yield
        finally:
            self.parts.pop()

    def _part(self) -> str:
        # The backward pass runs without gradients, apart from forward passes that are repeated in it.
        return "recomputation" if self.parts[-1] == "backward" and torch.is_grad_enabled() else self.parts[-1]

    def add(self, flops: float, traffic: float) -> None:
        """Adds an operation with `flops` floating point operations that reads and writes `traffic` bytes."""
        self.flops[self._part()] += flops
        self.seconds[self._part()] += max(flops / MATMUL_RATE, traffic / BANDWIDTH)

    def count(self, func, args, kwargs, out) -> None:
        """Adds an operation that has been run."""
        name, packet = func.overloadpacket.__name__, func.overloadpacket
        results = [tensor for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)]
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        masks = [tensor for tensor in given if name.startswith("index") and tensor.dtype == torch.bool]
        if name in _SYNCHRONIZING or masks:
            self.synchronizations[self._part()] += 1
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        is_view = not func._schema.is_mutable and all(tensor.untyped_storage()._cdata in storages for tensor in results)
        if is_view or packet in _ALLOCATIONS:
            return
        flops = 0.0
        if packet in _FORWARD_PER_ATTENTION:
            given_arguments = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
            shapes = [given_arguments[name].shape for name in ("query", "key", "value")]
            flops = _FORWARD_PER_ATTENTION[packet] * sdpa_flop_count(*shapes) / (2 if given_arguments.get("is_causal") else 1)
        elif packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
        self.add(flops, sum(tensor.numel() * tensor.itemsize for tensor in (*given, *results)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.count(func, args, kwargs or {}, out)
        return out


class StepCosts(OperationCosts):
    """
    Costs of a step on tensors without data, with the bytes of live storages by group and their peak.

    Operations whose result depends on data return that of a batch of `make_batch`: no padding, as many features as tokens, and
    `supervised` supervised tokens.
    """

    def __init__(self, supervised: int):
        super().__init__()
        self.supervised = supervised
        self.sizes: dict[int, int] = {}
        self.labels: dict[int, tuple[str, str]] = {}
        self.now: Counter = Counter()
        self.total = 0
        self.reset_peak()

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
        kwargs = kwargs or {}
        operation = func.overloadpacket.__name__
        if operation in ("_local_scalar_dense", "equal"):
            self.count(func, args, kwargs, ())
            return True
        if operation == "nonzero":
            out = torch.empty(self.supervised, args[0].ndim, dtype=torch.long)
        elif operation in ("index", "index_put", "index_put_", "_index_put_impl_"):
            out = func(args[0], self._numbers(args[1]), *args[2:], **kwargs)
        else:
            out = func(*args, **kwargs)
        self.count(func, args, kwargs, out)
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


# ============================================================ A step without data


@contextmanager
def tensors_without_data(costs: StepCosts, limit_gb: float):
    """Runs a block on tensors without data, with the operations of a GPU of `limit_gb` GB where the CPU has others: autocast computes layer
    norms in float32, and dropout is one kernel."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from llava_st_hf.training import vision_memory

    plain_norm = F.layer_norm

    def layer_norm(states, shape, weight=None, bias=None, eps=1e-5):
        if not torch.is_autocast_enabled("cpu"):
            return plain_norm(states, shape, weight, bias, eps)
        return plain_norm(states.float(), shape, None if weight is None else weight.float(), None if bias is None else bias.float(), eps)

    def dropout(states, p=0.5, training=True, inplace=False):
        return torch.native_dropout(states, p, training)[0] if training and p else states

    def free_bytes(device):
        return max(0, int(limit_gb * 1e9 - costs.total))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(F, "layer_norm", layer_norm))
        stack.enter_context(mock.patch.object(F, "dropout", dropout))
        stack.enter_context(mock.patch.object(vision_memory, "free_bytes", free_bytes))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(costs)
        yield


def allocate(model) -> None:
    """Replaces the weights and buffers of a model on the meta device by tensors without data on the CPU, in place."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


# ============================================================ Liger's kernels without Triton


def count_liger_kernels(decoder, costs: OperationCosts) -> None:
    """Replaces RMSNorm and SwiGLU of a decoder, in place, by functions that add the costs of Liger's kernels and compute nothing."""
    for layer in decoder.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.forward = partial(_kernel, costs)
        mlp = layer.mlp
        mlp.forward = lambda states, mlp=mlp: mlp.down_proj(_kernel(costs, mlp.gate_proj(states), mlp.up_proj(states)))
    decoder.norm.forward = partial(_kernel, costs)


def _kernel(costs: OperationCosts, *inputs: torch.Tensor) -> torch.Tensor:
    costs.add(0, sum(tensor.nbytes for tensor in inputs) + inputs[0].nbytes)
    return _Kernel.apply(costs, *inputs)


class _Kernel(torch.autograd.Function):
    """An element-wise function that keeps its inputs, whose backward pass writes their gradients into the memory of the first gradient and
    of the inputs."""

    @staticmethod
    def forward(ctx, costs, *inputs):
        ctx.costs = costs
        ctx.save_for_backward(*inputs)
        return torch.empty_like(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        ctx.costs.add(0, grad.nbytes + 2 * sum(tensor.nbytes for tensor in inputs))
        return None, *((grad,) if len(inputs) == 1 else (tensor.detach() for tensor in inputs))
