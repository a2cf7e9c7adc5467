# SPDX-License-Identifier: Apache-2.0
"""Function calls in child processes, which may crash or hang without affecting the caller."""

import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import wait
from pathlib import Path


ADDRESS_SPACE = 24 * 2**30  # bytes that a child may map: a damaged size field must not exhaust the memory of the machine


@dataclass(frozen=True)
class Died:
    """Result of a call whose child process ended, by a signal or with an exit code."""

    reason: str


@dataclass(frozen=True)
class Hung:
    """Result of a call that exceeded the time limit, so that its child process was killed."""

    seconds: float


def _serve(function: Callable, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.disable()  # the caller counts crashes, so no traceback is needed
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print every error of a damaged file
    pipe.send(None)  # ready: the time limit of a call does not include the start of the process
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
        """Ends the process and returns the signal or exit code with which it ended."""
        if self.process.is_alive():
            self.process.join(1)  # it may be about to end by itself
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _context():
    """
    Children are forked from a server that has imported the modules and has no threads: a fork of this process could hang on a lock held by
    one of its threads, and takes up to a second in a large process. A new interpreter takes seconds to import the modules.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["modeling_tests.video_verdicts", "modeling_tests.one_training"])
    return context


def _redirected(function: Callable, arguments: tuple, errors: Path) -> None:
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    # As in a program of its own. Otherwise workers of data loaders are started by another fork server, and do not end with this process.
    set_start_method("fork", force=True)
    function(*arguments)
    sys.stderr.flush()


def call_in_child(function: Callable, *arguments, errors: Path) -> int:
    """
    Calls `function(*arguments)`, which must be picklable, in a child process.

    Args:
        errors: file to which the child writes its standard error.

    Returns:
        The exit code of the child, 1 after an exception, or the negative number of the signal that ended it.
    """
    process = _context().Process(target=_redirected, args=(function, arguments, errors))
    process.start()
    process.join()
    return process.exitcode


def call_each(function: Callable, jobs: Iterable, seconds: float, processes: int = 2) -> Iterator[tuple]:
    """
    Yields `(job, result)` for each job as it is done, in any order.

    Args:
        function: called in a child as `function(job)`; it must not raise; the function, its argument and its result must be picklable.
        jobs: arguments of the calls.
        seconds: time limit of one call.
        processes: number of children at a time.

    `result` is the value returned by `function`, `Died` or `Hung`.
    """
    context, jobs = _context(), iter(jobs)
    children: list[_Child] = []

    def start(child: _Child | None = None) -> None:
        """Sends the next job to `child`, or to a new child."""
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
