# SPDX-License-Identifier: Apache-2.0
"""Calls in child processes that may die or hang without ending the caller."""

import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait


ADDRESS_SPACE = 24 * 2**30  # bytes a child may map: a damaged size must not take the memory of the machine


@dataclass(frozen=True)
class Died:
    """The child ended during the call, by a signal or with an exit code."""

    reason: str


@dataclass(frozen=True)
class Hung:
    """The call took longer than allowed and its child was ended."""

    seconds: float


def _serve(function: Callable, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # deaths are what the caller counts
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print every fault of a damaged file
    pipe.send(None)  # ready: the time of a call does not count that of the start
    while (job := pipe.recv()) is not None:
        pipe.send(function(job))


class _Child:
    def __init__(self, context, function: Callable):
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other), daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()

    def give(self, job) -> None:
        self.job, self.since = job, time.monotonic()
        self.pipe.send(job)

    def kill(self) -> str:
        """Ends the process and says how it ended."""
        if self.process.is_alive():
            self.process.join(1)  # it may be about to end by itself
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def call_each(function: Callable, jobs: Iterable, seconds: float, processes: int = 2) -> Iterator[tuple]:
    """
    Yields `(job, result)` for each job as it is done, in any order.

    Args:
        function: called in a child as `function(job)`; it must be picklable, as must what it takes and returns, and not raise.
        jobs: its arguments.
        seconds: the longest that one call may take.
        processes: how many children there are at a time.

    `result` is what `function` returned, `Died` or `Hung`.
    """
    # Children are forked from a server that has the imports and no threads: a fork of this process may hang on a lock that one of
    # its threads holds.
    context = get_context("forkserver")
    context.set_forkserver_preload(["modeling_tests.video_verdicts"])
    jobs = iter(jobs)
    children: list[_Child] = []

    def start(child: _Child | None = None) -> None:
        """Gives the next job to `child`, or to a new child."""
        for job in jobs:
            child = child or _Child(context, function)
            child.give(job)
            children.append(child)
            return
        if child is not None:
            child.pipe.send(None)
            child.process.join()
            child.pipe.close()

    for _ in range(processes):
        start()
    while children:
        due = min(child.since for child in children) + seconds
        ready = wait([child.pipe for child in children], max(0.0, due - time.monotonic()))
        for child in list(children):
            if child.pipe in ready:
                children.remove(child)
                try:
                    result = child.pipe.recv()
                except EOFError:
                    yield child.job, Died(child.kill())
                    start()
                    continue
                yield child.job, result
                start(child)
            elif time.monotonic() - child.since > seconds:
                children.remove(child)
                child.process.kill()
                child.kill()
                yield child.job, Hung(seconds)
                start()
