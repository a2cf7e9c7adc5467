# SPDX-License-Identifier: Apache-2.0
"""Settings of a run, stored in its output folder, so that no run resumes from the checkpoints of another one."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from ..checkpoints.adapters import BASE_FOLDER
from ..data.mixture import read_mixture
from ..files import write_file
from .arguments import LlavaSTTrainingConfig
from .saving import get_last_checkpoint


METADATA_FILE = "run.json"
_FORMAT = 2  # of the file; llava-st-hf 0.1 wrote none
# Arguments that may change when a run is resumed, since no training step depends on them. All others are compared.
HARMLESS_ARGUMENTS = frozenset((
    # how long the run is
    "max_steps", "num_train_epochs",
    # where it writes, and what it logs
    "output_dir", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "include_num_input_tokens_seen", "skip_memory_metrics", "debug", "max_errors",
    # evaluation
    "do_train", "do_eval", "do_predict", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps",
    "eval_do_concat_batches", "eval_use_gather_object", "eval_packing", "per_device_eval_batch_size", "prediction_loss_only",
    "batch_eval_metrics", "include_for_metrics", "bf16_full_eval", "fp16_full_eval", "metric_for_best_model", "greater_is_better",
    # saving, uploading and resuming
    "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "enable_jit_checkpoint",
    "load_best_model_at_end", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
    "hub_revision", "hub_license", "hub_datasets", "resume_from_checkpoint", "restore_callback_states_from_checkpoint",
    # speed and memory of the same computation
    "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_multiprocessing_context", "dataset_num_proc", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_offloading", "torch_empty_cache_steps", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "use_cache", "attn_implementation", "compile_vision_tower", "selective_checkpointing",
    "use_liger_kernel", "liger_kernel_config",
    # processes
    "local_rank", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_broadcast_buffers",
    "ddp_static_graph",
    # old names, whose values are moved to the new ones
    "train", "label_scheme",
))  # fmt: skip


def check_resume_compatibility(
    args: LlavaSTTrainingConfig, model: str, mixture: str | os.PathLike, num_samples: int | None, **settings
) -> None:
    """
    Writes the settings of a run to `run.json` in its output folder, or compares them if the folder has checkpoints or a base model.

    Recorded are all arguments that are not in `HARMLESS_ARGUMENTS`, and SHA-256 digests of the mixture file and of all its annotation
    files. Call it in one process.

    Args:
        args: of the run.
        model: folder or hub id of the model that the run starts from. Relative and absolute paths of the same folder are equal.
        mixture: YAML file of the training data.
        num_samples: number of training samples; None while streaming.
        settings: further settings of the run, such as those of LoRA. Names in `HARMLESS_ARGUMENTS` are ignored.

    Raises:
        ValueError: listing every difference from the run whose checkpoints are in the folder, or naming what is wrong in the mixture.
        NotADirectoryError: if the output folder is a file.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir={args.output_dir} is a file, but must be a folder.")
    arguments = {**args.to_dict(), "world_size": args.world_size, **settings}
    record = {
        "format": _FORMAT,
        "model": os.path.realpath(model) if os.path.exists(model) else model,
        "num_samples": num_samples,
        "mixture file": hashlib.sha256(Path(mixture).read_bytes()).hexdigest(),
        "annotation files": _annotation_digests(mixture),
        "arguments": {name: value for name, value in arguments.items() if name not in HARMLESS_ARGUMENTS},
    }
    record = json.loads(json.dumps(record, default=str))
    path = folder / METADATA_FILE
    if get_last_checkpoint(folder) is None and not (folder / BASE_FOLDER).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(record, indent=2) + "\n")
        return
    if not path.is_file():
        raise ValueError(f"{folder} has checkpoints but no {METADATA_FILE}: another program wrote them. Choose another output_dir.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Choose another output_dir.") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError(f"{path} is of another version of llava-st-hf: finish the run with that version, or choose another output_dir.")
    different = _differences(found, record, args)
    if different:
        raise ValueError(
            f"{folder} has checkpoints of another run: {'; '.join(different)}. Resume with the settings of that run, choose another "
            "output_dir, or delete the folder."
        )


def _annotation_digests(mixture: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every annotation file of a mixture, by its path relative to the mixture's folder."""
    files: set[Path] = set()
    for entry in read_mixture(mixture):
        files.add(Path(entry.json_path))
        if entry.boxes_folder is not None:
            files.update(Path(entry.boxes_folder).rglob("*.json"))
    digests = {}
    for path in sorted(files):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        digests[os.path.relpath(path, Path(mixture).absolute().parent)] = digest.hexdigest()
    return digests


def _differences(found: dict, record: dict, args: LlavaSTTrainingConfig) -> list[str]:
    """One text for each setting in which two records differ."""
    before, now = found["arguments"], record["arguments"]
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    # An argument that a newer version of TRL or transformers adds is not in the record. Its default is what the run had.
    different = [
        f"{name} was {before.get(name, defaults.get(name))!r} and is {now.get(name)!r}"
        for name in now
        if before.get(name, defaults.get(name)) != now.get(name)
    ]
    different += [f"{name} was {found[name]!r} and is {record[name]!r}" for name in ("model", "num_samples") if found[name] != record[name]]
    if found["mixture file"] != record["mixture file"]:
        different.append("the mixture file has changed")
    before, now = found["annotation files"], record["annotation files"]
    different += [f"the annotation file {path} has changed" for path in before if path in now and before[path] != now[path]]
    different += [f"the annotation file {path} is not in the mixture now" for path in before if path not in now]
    different += [f"the annotation file {path} was not in the mixture" for path in now if path not in before]
    return different
