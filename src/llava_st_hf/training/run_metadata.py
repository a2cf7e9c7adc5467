# SPDX-License-Identifier: Apache-2.0
"""What a run is made of, kept beside its checkpoints: no other run goes on from them by mistake."""

import hashlib
import json
import os
from pathlib import Path

from ..checkpoints.adapters import BASE_FOLDER
from .arguments import LlavaSTTrainingConfig
from .saving import get_last_checkpoint


RECORD = "run.json"
# Arguments that decide what a step computes. Others, such as max_steps or logging, may change when a run goes on.
_ARGUMENTS = (
    "train", "learning_rate", "learning_rates", "loss_on", "max_length", "seed", "data_seed", "per_device_train_batch_size",
    "gradient_accumulation_steps", "world_size", "train_sampling_strategy", "weight_decay", "max_grad_norm", "bf16", "fp16", "muon",
    "video_backend", "allow_truncated",
)  # fmt: skip
# What records that do not tell of a setting were made with.
_BEFORE = {"max_conversations_per_sequence": 1, "muon": False, "video_backend": "pyav", "allow_truncated": False}


def check_resume_compatibility(
    args: LlavaSTTrainingConfig, model: str, mixture: str | os.PathLike, num_samples: int | None, **settings
) -> None:
    """
    Records what a run is made of in its output folder, or compares it where there is something to go on from.

    Args:
        args: of the run.
        model: what it starts from, as the recipe says it.
        mixture: its data.
        num_samples: how many samples that gave; None while streaming.
        settings: what else decides the run, such as those of a LoRA.

    Raises:
        ValueError: naming every difference to the run whose checkpoints the folder holds.
        NotADirectoryError: where the output folder is a file.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir={args.output_dir} is a file; a folder is written.")
    record = {name: getattr(args, name) for name in _ARGUMENTS}
    record |= {"optim": str(getattr(args.optim, "value", args.optim)), "model": model, "num_samples": num_samples, **settings}
    record["mixture"] = hashlib.sha256(Path(mixture).read_bytes()).hexdigest()
    record = json.loads(json.dumps(record))
    path = folder / RECORD
    begun = get_last_checkpoint(folder) is not None or (folder / BASE_FOLDER).is_dir()
    if not begun:
        if args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=2) + "\n")
        return
    if not path.is_file():
        raise ValueError(f"{folder} holds checkpoints without a {RECORD}: they are of another program. Choose another output_dir.")
    found = {**_BEFORE, **json.loads(path.read_text())}
    different = [f"{name} was {found.get(name)!r} and is {value!r}" for name, value in record.items() if found.get(name) != value]
    if different:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(different)}. Go on with the settings of that run, choose another output_dir, or "
            "delete the folder."
        )
