# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and models of a training run, written atomically: a save that ends early leaves nothing that loads."""

import json
import logging
import os
import shutil
from pathlib import Path

from peft import PeftModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from ..checkpoints.atomic import PARTIAL, finish_interrupted_write, flush, publish, save_errors
from ..checkpoints.publishing import public_base, publish_folder


logger = logging.getLogger(__name__)


def get_last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint folder of a run that has a complete trainer state, or None. Others are logged and skipped.

    The trainer state is the last file that a checkpoint gets. Without it the folder is what an interrupted program of another kind, or
    two programs in one folder, left.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    for path in reversed(sort_checkpoints(str(folder))):
        try:
            step = json.loads(Path(path, TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("Skipping %s: it has no complete %s (%r).", path, TRAINER_STATE_NAME, error)
            continue
        if path.endswith(f"-{step}"):
            return path
        logger.warning("Skipping %s: its %s is of step %s.", path, TRAINER_STATE_NAME, step)
    return None


class AtomicCheckpointMixin:
    """
    Makes a trainer write checkpoints and models atomically.

    A checkpoint appears by a rename, after all of its files are on the disk. A run that ends at any moment leaves the checkpoints
    before it, and at most a folder `.partial`, which no run resumes from.
    """

    _staging: Path | None = None

    def __init__(self, model, args, peft_config=None, **kwargs):
        if args.push_to_hub:
            _check_upload(model, peft_config)
        super().__init__(model=model, args=args, peft_config=peft_config, **kwargs)

    def _get_output_dir(self, trial) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        # A checkpoint does not hold the sums since the last log. Logging first gives a resumed run the same curve.
        if self.control.should_save:
            self.control.should_log = True
        return super()._maybe_log_save_evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        target = Path(output_dir or self.args.output_dir)
        staging = target / PARTIAL
        if self.args.should_save:
            finish_interrupted_write(target)
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with save_errors("The model", staging):
            super().save_model(str(staging), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(target)
        self.accelerator.wait_for_everyone()

    def push_to_hub(self, commit_message: str = "Model save", **kwargs) -> None:
        """Saves the model to the output folder and uploads it with its card, without checkpoints and without the base of an adapter."""
        self.save_model()
        self.create_model_card()
        if self.is_world_process_zero():
            if self.hub_model_id is None:
                self.init_hf_repo()
            publish_folder(
                self.args.output_dir,
                self.hub_model_id,
                token=self.args.hub_token,
                revision=self.args.hub_revision,
                commit_message=commit_message,
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
            with save_errors(name, staging):
                super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint:  # from the staging folder, or from the run's folder as an earlier command named it
            self.state.best_model_checkpoint = str(run_folder / Path(self.state.best_model_checkpoint).name)
        if self.args.should_save:
            self._publish_checkpoint(staging, run_folder, name)
        self.accelerator.wait_for_everyone()

    def _publish_checkpoint(self, staging: Path, run_folder: Path, name: str) -> None:
        with save_errors(name, staging):
            self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))  # with the final path of the best checkpoint
            flush(staging / name)
        if (run_folder / name).exists():  # a run that resumed from an earlier checkpoint
            _delete(run_folder / name, staging)
        (staging / name).rename(run_folder / name)
        if self.args.save_total_limit:
            kept = {str(run_folder / name), self.state.best_model_checkpoint}
            old = [path for path in sort_checkpoints(str(run_folder)) if path not in kept]
            for path in old[: max(0, len(old) + len(kept - {None}) - self.args.save_total_limit)]:
                _delete(Path(path), staging)
        shutil.rmtree(staging)


def _check_upload(model, peft_config) -> None:
    """Raises an error, before training, for an adapter whose base model has no hub id."""
    if isinstance(model, PeftModel):
        base = model.active_peft_config.base_model_name_or_path
    elif peft_config is not None:
        base = model if isinstance(model, str) else model.config.name_or_path
    else:
        return
    try:
        public_base(base)
    except ValueError as error:
        raise ValueError(f"push_to_hub=True would fail after training: set push_to_hub=False. {error}") from error


def _delete(folder: Path, staging: Path) -> None:
    """Deletes a checkpoint. Its folder is renamed first, so that no run resumes from a half-deleted one."""
    old = staging / f"old-{folder.name}"
    folder.rename(old)
    shutil.rmtree(old)
