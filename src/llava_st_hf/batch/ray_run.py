# SPDX-License-Identifier: Apache-2.0
"""
Shards on the machines of a Ray cluster, as a Ray Data pipeline with one task for each shard.

A worker is an actor that writes the files of its shards itself. A task that Ray repeats, because its worker was killed or its result was
lost, finds a finished shard and asks nothing.

`ray.data.llm.build_processor` with `HttpRequestProcessorConfig` is not used: see docs/batch_inference.md.
"""

import os
import socket
from argparse import Namespace
from typing import Any

from ..shapes.demo_model import DEMO_MODEL_PATH
from .outcomes import Outcome
from .report import Session
from .run import answer_shards
from .state import Shard, Store, read_run
from .storage import Folder


LOCAL = "local"  # --ray local: a cluster of this machine that ends with the command


class ShardWorker:
    """
    Actor that answers the rows of shards.

    Args:
        args: of the command.
        output: folder of the output.
        store: run, session and retry of a `Store`.
        model: name that servers must serve; None without servers.

    Raises:
        ValueError: if this machine does not see the output folder of the command, or has another checkpoint.
    """

    def __init__(self, args: Namespace, output: str, store: dict[str, Any], model: str | None):
        from .command import checkpoint_hash, make_answering

        folder = Folder(output)
        run, options = read_run(folder) or (None, {})
        if run != store["run"]:
            raise ValueError(
                f"The worker on {socket.gethostname()} does not see the run of the command in {output}. Give a folder that all machines "
                "share, or object storage."
            )
        self._store = Store(folder, **store)
        self._answering = make_answering(args, model)
        if checkpoint_hash(args.model or DEMO_MODEL_PATH) != options["checkpoint"]:
            raise ValueError(
                f"{args.model or 'The demo model'} on {socket.gethostname()} is another checkpoint than on the machine of the command: "
                "copy it, or give a folder that all machines share."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Answers the shards of a batch, of one row each. Returns the sums of what was asked, with one row for each shard."""
        rows: list[dict[str, int]] = []
        for index in range(len(batch["index"])):
            shard = Shard.from_item({name: column[index] for name, column in batch.items()})
            session = _Counts()
            answer_shards([shard], self._store, self._answering, session.add)
            rows.append({"shard": shard.index, **session.counts})
        return {name: [row[name] for row in rows] for name in rows[0]}


class _Counts:
    """Sums of the outcomes of a shard."""

    def __init__(self):
        names = ("requests", "prompt_tokens", "completion_tokens", "media_bytes")
        self.counts = dict.fromkeys(("rows", "failed", *names), 0)

    def add(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            self.counts["rows"] += 1
            self.counts["failed"] += not outcome.is_answered
            for name in ("requests", "prompt_tokens", "completion_tokens", "media_bytes"):
                self.counts[name] += getattr(outcome, name) or 0


def check_ray() -> None:
    """
    Raises:
        ImportError: if Ray Data is not installed.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--ray needs Ray Data: pip install 'llava-st-hf[ray]' ({error}).") from error


def answer_on_ray(args: Namespace, shards: list[Shard], store: Store, model: str | None, session: Session) -> None:
    """
    Answers shards on the workers of a Ray cluster.

    Args:
        args: of the command: `ray`, the address of the cluster, and `workers`.
        shards: that are not finished.
        store: of the run, in this process.
        model: name of the served model; None without servers.
        session: of this process.

    Raises:
        OSError: with the message of the exception that ended a worker.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():
        # Ray's own limit of 30 seconds is too short where other processes use all cores.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
        ray.init(
            address=args.ray,
            num_cpus=max(os.cpu_count() or 1, args.workers or 1) if args.ray == LOCAL else None,
            include_dashboard=False if args.ray == LOCAL else None,
        )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        output = os.path.abspath(store.folder.path) if store.folder.is_local and "://" not in store.folder.path else store.folder.path
        workers = args.workers or sum(node["Alive"] for node in ray.nodes())
        uses_gpu = not args.server and args.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        answered = ray.data.from_items([shard.to_item() for shard in shards], override_num_blocks=len(shards)).map_batches(
            ShardWorker,
            fn_constructor_kwargs={
                "args": _portable(args),
                "output": output,
                "store": {"run": store.run, "session": store.session, "retry_failed": store.retry_failed},
                "model": model,
            },
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if uses_gpu else 0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(shards)), max_tasks_in_flight_per_actor=2),
        )
        for row in answered.iter_rows():
            session.add_counts(**{name: value for name, value in row.items() if name != "shard"})
            session.save()
    except RayError as error:
        raise OSError(f"A worker of Ray ended: {_cause(error)}") from error
    finally:
        ray.shutdown()
    for shard in shards:
        store.info(shard)


def _portable(args: Namespace) -> Namespace:
    """The arguments for processes with another working directory."""
    model = os.path.abspath(args.model) if args.model is not None and os.path.isdir(args.model) else args.model
    return Namespace(**{**vars(args), "model": model})


def _cause(error: BaseException) -> str:
    """Message of the exception that a worker raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
