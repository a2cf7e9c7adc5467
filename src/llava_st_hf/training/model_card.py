# SPDX-License-Identifier: Apache-2.0
"""The model card of a run: what it was trained on, how, and what came of it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import peft
import transformers
import trl
import yaml
from datasets import IterableDataset
from huggingface_hub import ModelCard, ModelCardData

from ..data.mixture import Strategy, read_mixture
from ..version import __version__


if TYPE_CHECKING:
    from .trainer import LlavaSTTrainer

# Logged values that say nothing of the model.
_NOT_METRICS = ("epoch", "step", "grad_norm", "learning_rate", "total_flos", "num_tokens")
_SPEED = ("_per_second", "_runtime")


def write_model_card(trainer: LlavaSTTrainer, model_name: str | None = None) -> Path:
    """Writes README.md to the run's output folder.

    Args:
        trainer: at any moment of its run; `trainer.card_data` and `trainer.card_recipe` are what it was given to say of data and recipe.
        model_name: title of the card; the folder's name by default.
    """
    folder = Path(trainer.args.output_dir)
    model_name = model_name or folder.name
    base = trainer.base_model_name or trainer.model.config.name_or_path or None
    is_adapter = isinstance(trainer.model, peft.PeftModel)
    metadata = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="video-text-to-text",
        # A folder of this machine is no model that a reader could find.
        base_model=base if base and not Path(base).exists() else None,
        tags=list(trainer._tag_names),
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {model_name}",
        "LLaVA-ST, a language model that says when something happens in a video and where it is in every frame. Trained with "
        f"[llava-st-hf](https://pypi.org/project/llava-st-hf/) {__version__} (transformers {transformers.__version__}, "
        f"TRL {trl.__version__}, PEFT {peft.__version__}).",
        "## Use\n\n" + _usage(is_adapter),
        "## Data\n\n" + (trainer.card_data or "Rows of chat messages."),
        "## Recipe\n\n```yaml\n" + yaml.safe_dump({**(trainer.card_recipe or {}), **_recipe(trainer)}, sort_keys=False).strip() + "\n```",
        "## Metrics\n\n" + _metrics(trainer),
    ]
    path = folder / "README.md"
    ModelCard("\n\n".join(parts) + "\n").save(path)
    return path


def describe_mixture(path: str | os.PathLike, dataset) -> str:
    """A Markdown table of a mixture: how many samples of which source, format and task were used.

    Args:
        path: of the mixture file.
        dataset: what `load_mixture` made of it. One that streams is not counted.
    """
    entries = [(entry.source, entry.format, _strategy_text(entry.strategy)) for entry in read_mixture(path)]
    if isinstance(dataset, IterableDataset):
        rows = [f"| {source} | {format} | {strategy} |" for source, format, strategy in entries]
        return "\n".join(["| source | format | used |", "|---|---|---|", *rows])
    counts: Counter[tuple[str, str]] = Counter()
    for batch in dataset.select_columns(["source", "task"]).iter(10_000):
        counts.update(zip(batch["source"], batch["task"], strict=True))
    rows = []
    for (source, task), count in sorted(counts.items()):
        formats, strategies = zip(*(entry[1:] for entry in entries if entry[0] == source), strict=True)  # several files of one source
        rows.append(f"| {source} | {task} | {', '.join(dict.fromkeys(formats))} | {', '.join(strategies)} | {count:,} |")
    return "\n".join(["| source | task | format | used | samples |", "|---|---|---|---|---|", *rows])


def _strategy_text(strategy: Strategy) -> str:
    if strategy.which == "all":
        return "all"
    return f"{strategy.which} {float(strategy.amount):g}{' %' if strategy.percent else ''}"


def _usage(is_adapter: bool) -> str:
    if is_adapter:
        lines = [
            "import llava_st_hf",
            "from peft import PeftModel",
            "from transformers import AutoModelForImageTextToText",
            "",
            'base = AutoModelForImageTextToText.from_pretrained("path/to/base")',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder").merge_and_unload()',
        ]
    else:
        lines = [
            "import llava_st_hf",
            "from transformers import pipeline",
            "",
            'grounder = pipeline("video-grounding", model="path/to/this/folder")',
            'grounder("clip.mp4", task="tvg", text="person takes a laptop")',
        ]
    return "\n".join(["```python", *lines, "```"])


def _recipe(trainer: LlavaSTTrainer) -> dict:
    args = trainer.args
    names = (
        "train", "learning_rate", "learning_rates", "num_train_epochs", "max_steps", "per_device_train_batch_size",
        "gradient_accumulation_steps", "world_size", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "max_length",
        "train_sampling_strategy", "loss_on", "seed", "bf16", "muon",
    )  # fmt: skip
    recipe = {name: getattr(args, name, None) for name in names}
    recipe["optim"] = str(getattr(args.optim, "value", args.optim))
    recipe["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return {name: value for name, value in recipe.items() if value is not None}


def _metrics(trainer: LlavaSTTrainer) -> str:
    """A table of the last value of everything that was logged."""
    last: dict[str, tuple[float, int]] = {}
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if name not in _NOT_METRICS and not name.endswith(_SPEED) and isinstance(value, (int, float)):
                last[name] = (value, entry.get("step", 0))
    if not last:
        return "None yet."
    rows = [f"| {name} | {value:.4g} | {step} |" for name, (value, step) in sorted(last.items())]
    return "\n".join(["| metric | last value | at step |", "|---|---|---|", *rows])
