# SPDX-License-Identifier: Apache-2.0
"""Folders that are there whole or not at all: whatever ends a save early, nothing is left that loads as if it were whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import upload_folder
from safetensors import SafetensorError
from transformers import trainer_utils
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from ..checkpoints.adapters import BASE_FOLDER


PARTIAL = ".partial"  # begins no checkpoint's name, so nothing resumes from it
# Without one of these a folder loads as nothing.
_KEY_FILES = ("config.json", "adapter_config.json")
_WEIGHT_FILES = ("model*.safetensors*", "adapter_model*", "pytorch_model*")


def get_last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint folder of a run, None where there is none."""
    return trainer_utils.get_last_checkpoint(str(output_dir)) if os.path.isdir(output_dir) else None


def _flush(folder: Path) -> None:
    """Waits until what a folder holds is on the disk: a rename must not overtake it."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move_files(staging: Path, target: Path) -> None:
    """Moves a model's files into a folder: those without which nothing loads are gone first, and come last."""
    _flush(staging)
    for name in _KEY_FILES:
        (target / name).unlink(missing_ok=True)
    for pattern in _WEIGHT_FILES:  # in another number of files, those of before would be read
        for path in target.glob(pattern):
            path.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: path.name in _KEY_FILES):
        if path.is_dir():
            shutil.rmtree(target / path.name, ignore_errors=True)
        path.replace(target / path.name)
    staging.rmdir()


@contextmanager
def atomic_folder(target: str | os.PathLike) -> Iterator[Path]:
    """A folder to write a model to. Its files become those of `target` when the block ends well; else they are deleted."""
    target = Path(target)
    staging = target / PARTIAL
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        _move_files(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def _all_or_nothing(what: str, staging: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own for a disk that is full
        shutil.rmtree(staging, ignore_errors=True)
        free = shutil.disk_usage(staging.parent).free / 2**30
        raise OSError(
            f"{what} could not be saved ({error}); {free:.1f} GiB are free for {staging.parent}. What was saved before is whole: start "
            "again to go on from it."
        ) from error


class AtomicCheckpointMixin:
    """
    For a trainer: checkpoints and models are there whole or not at all.

    A checkpoint appears by a rename, after all of its files are on the disk. A run that ends at any moment leaves the checkpoints
    before it, and at most a folder `.partial…`, which no run resumes from.
    """

    _staging: Path | None = None

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        # Sums over the steps since the last log are in no checkpoint: logged first, a run that starts again has the same curve.
        if self.control.should_save:
            self.control.should_log = True
        return super()._maybe_log_save_evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        target = Path(output_dir or self.args.output_dir)
        staging = target / PARTIAL
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with _all_or_nothing("The model", staging):
            super().save_model(str(staging), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _move_files(staging, target)
        self.accelerator.wait_for_everyone()

    def push_to_hub(self, commit_message: str = "Model save", **kwargs) -> None:
        """Saves the model to the output folder and uploads that: neither checkpoints nor the base of an adapter."""
        self.save_model()
        self.create_model_card()
        if self.is_world_process_zero():
            if self.hub_model_id is None:
                self.init_hf_repo()
            ignored = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", f"{BASE_FOLDER}/*", f"{PARTIAL}*", "runs/*"]
            upload_folder(
                repo_id=self.hub_model_id,
                folder_path=self.args.output_dir,
                commit_message=commit_message,
                ignore_patterns=ignored,
                token=self.args.hub_token,
                revision=self.args.hub_revision,
            )

    def _save_checkpoint(self, model, trial) -> None:
        run_folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = run_folder / PARTIAL
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            with _all_or_nothing(name, staging):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(staging / name):  # in all processes: each reads the best one at the end
            self.state.best_model_checkpoint = str(run_folder / name)
        if self.args.should_save:
            self._publish(staging, run_folder, name)
        self.accelerator.wait_for_everyone()

    def _publish(self, staging: Path, run_folder: Path, name: str) -> None:
        self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))  # with the best checkpoint where it will be
        _flush(staging / name)
        if (run_folder / name).exists():  # a run that began again from an earlier one
            _delete(run_folder / name, staging)
        (staging / name).rename(run_folder / name)
        if self.args.save_total_limit:
            kept = {str(run_folder / name), self.state.best_model_checkpoint}
            old = [path for path in sort_checkpoints(str(run_folder)) if path not in kept]
            for path in old[: max(0, len(old) + len(kept - {None}) - self.args.save_total_limit)]:
                _delete(Path(path), staging)
        shutil.rmtree(staging)


def _delete(folder: Path, staging: Path) -> None:
    """Deletes a checkpoint, whose name goes before its files do."""
    doomed = staging / f"old-{folder.name}"
    folder.rename(doomed)
    shutil.rmtree(doomed)
