# SPDX-License-Identifier: Apache-2.0
"""
Answers to the rows of shards, by several threads: each row is asked once, and each shard is written when its last row has an outcome.

Rows are begun in the order of the manifest, also across shards, so that no thread waits for the last rows of a shard. At most twice as
many rows as there are threads are begun at a time, and so are the shards that a killed process leaves behind.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .outcomes import Outcome, ShardInfo
from .state import Shard, Store, Work


# Seconds that requests which are being answered get to end when the run is stopped.
_GRACE_S = 10.0


class Answering(Protocol):
    """
    Answers questions, by servers or by a model in this process.

    `answer` returns an outcome for each question. An exception ends the run: it is one that concerns all rows.
    """

    #: Number of threads that call `answer`; 0 for calls in the thread that runs.
    connections: int
    #: Largest number of questions of a call.
    batch_size: int

    def answer(self, questions: list[dict]) -> list[Outcome]: ...


@dataclass
class _Open:
    """A shard that has been begun: `missing` rows have no outcome yet."""

    shard: Shard
    work: Work
    missing: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)


def answer_shards(
    shards: Iterable[Shard],
    store: Store,
    answering: Answering,
    on_rows: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_shard: Callable[[ShardInfo], None] = lambda info: None,
) -> None:
    """
    Answers the rows of shards that have no outcome yet, and writes the shards.

    If the run is stopped, by Ctrl-C or by an exception of `answering`, the outcomes of shards that are not finished are kept in the folder
    of partial shards.

    Args:
        on_rows: called with new outcomes.
        on_shard: called when a shard has been written.
    """
    opened: dict[int, _Open] = {}

    def batches() -> Iterator[tuple[_Open, list[int]]]:
        for shard in shards:
            work = store.work(shard)
            if work is None:
                continue
            rows = [row for row in shard.rows if row not in work.known]
            opened[shard.index] = one = _Open(shard, work, len(rows))
            if not rows:  # a run was stopped between the last outcome and the end of the file
                finish(one)
            for first in range(0, len(rows), answering.batch_size):
                yield one, rows[first : first + answering.batch_size]

    def finish(one: _Open) -> None:
        info = store.save(one.shard, one.outcomes, one.work)
        del opened[one.shard.index]
        assert info is not None  # all rows have an outcome
        on_shard(info)

    def answer(batch: tuple[_Open, list[int]]) -> list[Outcome]:
        one, rows = batch
        return answering.answer([one.shard.questions[row - one.shard.first_row] for row in rows])

    try:
        for (one, rows), outcomes in _answered(batches(), answer, answering.connections):
            one.outcomes.update(zip(rows, outcomes, strict=True))
            one.missing -= len(rows)
            on_rows(outcomes)
            if not one.missing:
                finish(one)
    finally:
        with contextlib.ExitStack() as saved:  # which goes on with the next one after an exception
            for one in opened.values():
                if one.outcomes:
                    saved.callback(store.save, one.shard, one.outcomes, one.work)


def _answered(batches: Iterator, answer: Callable, threads: int) -> Iterator[tuple]:
    """
    Yields each batch with the result of `answer`, in the order in which they are done.

    After an exception, or Ctrl-C in this generator, no batch is begun any more, and those that are done within seconds are yielded before
    the exception is raised.
    """
    if not threads:
        for batch in batches:
            yield batch, answer(batch)
        return
    todo: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (batch := todo.get()) is not None:
            if stopped.is_set():
                done.put((batch, None, None))
                continue
            try:
                done.put((batch, answer(batch), None))
            except BaseException as error:  # raised again in the thread that runs
                done.put((batch, None, error))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()  # a request that hangs does not keep the process alive
    pending, failure, deadline, has_more = 0, None, None, True
    try:
        while True:
            try:
                while failure is None and has_more and pending < 2 * threads:
                    batch = next(batches, None)
                    has_more = batch is not None
                    if has_more:
                        pending += 1
                        todo.put(batch)
                if not pending:
                    break
                batch, result, error = done.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except KeyboardInterrupt as interrupt:
                if failure is not None:  # the second Ctrl-C
                    raise
                failure, error, result = interrupt, interrupt, None
            except queue.Empty:
                break
            else:
                pending -= 1
            if error is not None and deadline is None:
                failure, deadline = error, time.monotonic() + _GRACE_S
                stopped.set()
            if result is not None:
                yield batch, result
        if failure is not None:
            raise failure
    finally:
        stopped.set()
        for _ in range(threads):
            todo.put(None)
