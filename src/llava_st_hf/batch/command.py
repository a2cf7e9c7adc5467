# SPDX-License-Identifier: Apache-2.0
"""`llava-st batch`: questions of a manifest, answered into a folder of Parquet files."""

import contextlib
import hashlib
import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import extract_commit_hash

from llava_st_cli.terminal import error_line, one_line

from ..checkpoints.weights_digest import weights_digest
from ..client import CoordinateRows, GroundingClient
from ..commands.models import load_pipeline, load_processor
from ..locking import locked_folder
from ..model.media_files_llava_st import local_path
from ..shapes.demo_model import DEMO_MODEL_PATH
from .local import PipelineAnswering
from .manifest import Manifest, read_manifest
from .media import is_on_disk, medium
from .outcomes import ANSWERS, ShardInfo, read_info
from .ray_run import answer_on_ray, check_ray
from .remote import ServerAnswering
from .report import SUMMARY, Session, describe, new_session, summarize
from .run import Answering, answer_shards
from .servers import Servers
from .state import PARTIAL, Shard, Store, finished, make_shards, open_run
from .storage import Folder, in_parallel


SOME_FAILED = 3  # exit status
_CHECKPOINT_FILES = {".json", ".jinja", ".txt", ".model"}


def run_batch(args: Namespace) -> int:
    """
    Answers the rows of a manifest that have no answer yet.

    Returns:
        The exit status: 0 if all rows are answered, 3 if some failed.

    Raises:
        ValueError, OSError: if the run cannot start or go on.
    """
    args.api_key = os.environ.get("OPENAI_API_KEY") or None
    if args.ray is not None:
        check_ray()
    manifest = read_manifest(args.manifest, args.media_root)
    if args.ray is None:
        _check_media(manifest)
    folder = Folder(args.output)
    with _locked(folder), _termination_as_interrupt():
        processor = load_processor(args)
        servers = _servers(args) if args.server else None
        options = _options(args, None if servers is None else servers.model)
        run, count = open_run(folder, manifest, options, args.num_shards)
        for subfolder in (ANSWERS, PARTIAL):
            folder.delete_temporary(subfolder)
        shards = make_shards(manifest, count)
        before = list(finished(folder, count))
        store = Store(folder, run, new_session(), args.retry_failed)
        todo = _unfinished(shards, before, args.retry_failed)
        if todo:
            for url in servers.down if servers is not None else []:
                print(error_line(f"{url} does not answer and gets no requests until it does."), file=sys.stderr)
            _answer(
                args,
                todo,
                store,
                processor,
                servers,
                Session(folder, store.session, len(manifest.questions), _done(folder, before, todo), _gpus(args)),
            )
        return _report(args, folder, manifest, count)


def _answer(args: Namespace, todo: list[Shard], store: Store, processor, servers: Servers | None, session: Session) -> None:
    session.save()
    status = "stopped"
    try:
        if args.ray is not None:
            answer_on_ray(args, todo, store, None if servers is None else servers.model, session)
        else:

            def on_shard(info: ShardInfo) -> None:
                session.save()

            answer_shards(todo, store, _answering(args, processor, servers), session.add, on_shard)
        status = "complete"
    finally:
        session.close(status)


def make_answering(args: Namespace, model: str | None) -> Answering:
    """What answers in this process, for the arguments of the command. `model` is the name that servers must serve."""
    processor = load_processor(args)
    return _answering(args, processor, _servers(args, model) if args.server else None)


def _answering(args: Namespace, processor, servers: Servers | None) -> Answering:
    if servers is not None:
        options = {"exact": args.exact, "constrained": args.constrained}
        if args.max_new_tokens is not None:
            options["max_tokens"] = args.max_new_tokens
        rows = CoordinateRows.from_checkpoint(args.model) if args.exact else None
        client = GroundingClient(args.server[0], servers.model, processor, args.api_key, rows=rows)
        return ServerAnswering(servers, client, args.connections, options)
    options = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    return PipelineAnswering(load_pipeline(args, processor), args.batch_size, {**options, "grammar": "auto" if args.constrained else None})


def _servers(args: Namespace, model: str | None = None) -> Servers:
    return Servers(args.server, args.connections, args.timeout, args.max_retries, args.wait_for_server, args.api_key, model)


def _options(args: Namespace, served_model: str | None) -> dict[str, Any]:
    """The options that decide the answers; another value of one is another run."""
    media_root = args.media_root if args.media_root is not None else os.path.dirname(args.manifest)
    names = ("exact", "constrained", "max_new_tokens") if args.server else ("constrained", "max_new_tokens", "dtype")
    return {
        "media_root": media_root if "://" in media_root else os.path.abspath(media_root),
        "model": args.model,
        "checkpoint": checkpoint_hash(args.model or DEMO_MODEL_PATH),
        "answered_by": "servers" if args.server else "pipeline",
        "served_model": served_model,
        **{name: getattr(args, name) for name in names},
    }


def checkpoint_hash(model: str) -> str | None:
    """
    Hash of the files of a checkpoint folder, with the digest of its weights, or the commit of a repository of the hub that has been loaded,
    so that another checkpoint under the same name is noticed; None for a commit that is unknown.
    """
    folder = Path(model)
    if not folder.is_dir():
        found = try_to_load_from_cache(model, "config.json")
        return extract_commit_hash(found if isinstance(found, str) else None, None)
    files = sorted(file for file in folder.iterdir() if file.suffix in _CHECKPOINT_FILES)
    described = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if any(folder.glob("model*.safetensors")):  # servers have the weights, and the command may have the files of the processor only
        described["weights"] = weights_digest(folder)
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _check_media(manifest: Manifest) -> None:
    """
    Raises:
        FileNotFoundError: if there are media on disks and none of them exists: a wrong --media-root makes no failed rows.
    """
    first = None
    for question in manifest.questions:
        _, source = medium(question)
        if isinstance(source, str) and is_on_disk(source):
            if os.path.exists(source):
                return
            with contextlib.suppress(OSError, ValueError):
                local_path(source)
                return
            first = first or source
    if first is not None:
        raise FileNotFoundError(
            f"None of the images and videos of {manifest.path} exists, the first is {first}. Give their folder as --media-root."
        )


def _locked(folder: Folder) -> AbstractContextManager:
    return locked_folder(folder.local_path) if folder.is_local else nullcontext()


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, which ends containers, stops the run as Ctrl-C does."""

    def stop(number, frame) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _unfinished(shards: list[Shard], before: list[ShardInfo], retry_failed: bool) -> list[Shard]:
    finished_shards = {info.shard for info in before if not (retry_failed and info.failed)}
    return [shard for shard in shards if shard.index not in finished_shards]


def _done(folder: Folder, before: list[ShardInfo], todo: list[Shard]) -> int:
    """Rows that have an answer, or an outcome that is kept, before this session."""
    retried = {shard.index for shard in todo}
    partial = in_parallel(lambda name: read_info(folder, f"{PARTIAL}/{name}"), folder.names(PARTIAL))
    return sum(info.rows - info.failed if info.shard in retried else info.rows for info in [*before, *partial])


def _gpus(args: Namespace) -> int:
    if args.gpus is not None:
        return args.gpus
    return len(args.server) if args.server else 1


def _report(args: Namespace, folder: Folder, manifest: Manifest, count: int) -> int:
    """Writes and prints the totals. Returns the exit status."""
    infos = list(finished(folder, count))
    summary = summarize(folder, infos, len(manifest.questions), args.price_per_hour)
    if summary["unfinished"]:
        raise OSError(f"{folder.name(ANSWERS)} has {len(infos)} of {count} shards: is it a folder that all workers share?")
    folder.write(SUMMARY, json.dumps(summary, indent=2).encode())
    for line in describe(summary):
        print(one_line(line))
    return SOME_FAILED if summary["failed"] else 0
