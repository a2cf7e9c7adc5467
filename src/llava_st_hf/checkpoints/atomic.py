# SPDX-License-Identifier: Apache-2.0
"""Atomic writes of model folders: after a crash, a kill or a full disk a folder never loads with files of two models.

A folder is written in two steps. First all files go to a subfolder `.partial`. When they are on the disk, `.partial` is renamed to
`.complete`: from this moment the new model exists as a whole. Then its files are moved into the folder, `config.json` last. A process
that ends before the rename leaves the old model as it was. One that ends during the moves leaves a folder without `config.json`, which
does not load, and the next write to the folder, or `finish_interrupted_write`, completes the moves.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from ..model.model_card_llava_st import MAX_SHARD_SIZE, write_card
from .fingerprint import FINGERPRINT, write_fingerprint


PARTIAL = ".partial"
COMPLETE = ".complete"
_MANIFEST = ".manifest.json"  # in `.complete`: the names of all files and folders of the new model
# Without one of these, transformers and PEFT do not load a folder.
_KEY_FILES = ("config.json", "adapter_config.json")
_WEIGHT_FILES = ("model*.safetensors*", "adapter_model*", "pytorch_model*", FINGERPRINT)


def flush(folder: Path) -> None:
    """Waits until all content of a folder is on the disk: a rename must not overtake it."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(target: Path) -> None:
    """Replaces the model in `target` by the one in its subfolder `.partial`. Other files and folders of `target` are kept."""
    partial = target / PARTIAL
    with save_errors("The model", partial):
        names = sorted(path.name for path in partial.iterdir())
        (partial / _MANIFEST).write_text(json.dumps(names), encoding="utf-8")
        flush(partial)
    partial.rename(target / COMPLETE)
    finish_interrupted_write(target)


def finish_interrupted_write(target: str | os.PathLike) -> None:
    """Moves the files of a complete new model in `target/.complete` into `target`. Does nothing if there is none.

    May itself be interrupted and called again.
    """
    target = Path(target)
    complete = target / COMPLETE
    if not complete.is_dir():
        return
    manifest = complete / _MANIFEST
    if manifest.exists():
        names = json.loads(manifest.read_text(encoding="utf-8"))
        for name in _KEY_FILES:
            if name not in names or (complete / name).exists():
                (target / name).unlink(missing_ok=True)
        _sync(target)
        for pattern in _WEIGHT_FILES:  # weights of the old model in another number of files would be loaded, its fingerprint checked
            for path in target.glob(pattern):
                if path.name not in names:
                    path.unlink()
        for name in sorted(names, key=lambda name: name in _KEY_FILES):
            if not (complete / name).exists():  # moved before
                continue
            if name in _KEY_FILES:
                _sync(target)
            if (complete / name).is_dir():
                shutil.rmtree(target / name, ignore_errors=True)
            (complete / name).replace(target / name)
        manifest.unlink()
    complete.rmdir()


@contextmanager
def atomic_folder(target: str | os.PathLike) -> Iterator[Path]:
    """Yields a folder to write a model to. Its files replace those of `target` if the block succeeds; otherwise they are deleted.

    Raises:
        OSError: if the disk is full or the files cannot be written. The message names `target`, which is unchanged.
    """
    target = Path(target)
    finish_interrupted_write(target)
    partial = target / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    with save_errors("The model", partial):
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    publish(target)


@contextmanager
def save_errors(what: str, partial: Path) -> Iterator[None]:
    """Turns any error of a full disk in the block into an `OSError` that names the target, and deletes the partial files."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # each library raises its own on a full disk
        shutil.rmtree(partial, ignore_errors=True)
        target = partial.parent
        existing = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free / 2**30
        raise OSError(
            f"{what} could not be saved to {target} ({error}); {free:.1f} GiB are free there. What was saved before is unchanged: "
            "free disk space and run the same command again."
        ) from error


def save_model_and_processor(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    target: str | os.PathLike,
    card: ModelCard | None = None,
    fingerprint: bool = False,
) -> None:
    """Saves both to `target`, so that a model never loads with the processor of another one, with the code of both, with a model card if
    one is given, and with a fingerprint if that is asked for. Weights are in files of at most 5 GB. See [`atomic_folder`]."""
    with atomic_folder(target) as folder:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        processor.save_pretrained(folder)
        if card is not None:
            write_card(folder, card)
        if fingerprint:
            write_fingerprint(folder, model, processor)
