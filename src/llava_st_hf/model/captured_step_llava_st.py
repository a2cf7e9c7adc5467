# SPDX-License-Identifier: Apache-2.0
"""A pass of the decode loop recorded as a CUDA graph, so that the host launches one graph instead of thousands of kernels."""

from collections.abc import Callable

import torch


# Passes before the recording: libraries allocate their workspaces in the first ones. They are passes of the answer as all others.
_EAGER_PASSES = 2
# Passes that may be launched before it is known that all answers are finished. A pass over finished answers changes nothing.
_PASSES_AHEAD = 2


class CapturedStep:
    """
    Runs a function of fixed tensors, from the third call on as a CUDA graph.

    Args:
        step (`Callable`):
            Reads and updates the same tensors in place in each call, without host synchronisation.
    """

    def __init__(self, step: Callable[[int], None]):
        self.step, self.calls = step, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream()

    def __call__(self, end: int) -> None:
        self.calls += 1
        if self.calls <= _EAGER_PASSES:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.step(end)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):  # the stream whose workspaces exist
                self.step(end)
            self.graph = graph
        self.graph.replay()


class DelayedFlag:
    """Reads a boolean tensor of a GPU on the host a few calls later, so that the GPU never waits for the host."""

    def __init__(self):
        self.calls = 0
        self.copies = [torch.zeros((), dtype=torch.bool, pin_memory=True) for _ in range(_PASSES_AHEAD)]
        self.events = [torch.cuda.Event() for _ in range(_PASSES_AHEAD)]

    def read(self, flag: torch.Tensor) -> bool:
        """Returns the value that `flag` had `_PASSES_AHEAD` calls ago, False in the first calls."""
        place = self.calls % _PASSES_AHEAD
        value = False
        if self.calls >= _PASSES_AHEAD:
            self.events[place].synchronize()
            value = bool(self.copies[place])
        self.copies[place].copy_(flag, non_blocking=True)
        self.events[place].record()
        self.calls += 1
        return value
