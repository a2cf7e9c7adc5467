# SPDX-License-Identifier: Apache-2.0
"""Model card of a training run: data, recipe and metrics."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import peft
import transformers
import trl
import yaml
from datasets import IterableDataset
from transformers import Trainer

from ..data.mixture import Strategy, read_mixture
from ..model.model_card_llava_st import CARD, model_card, write_card
from ..version import __version__


# Logged values that do not describe the model.
_NOT_METRICS = ("epoch", "step", "grad_norm", "learning_rate", "total_flos", "num_tokens")
_SPEED = ("_per_second", "_runtime")


class ModelCardMixin:
    """
    Model card of a trainer: data, recipe and metrics of the run instead of TRL's text, whose code loads a language model.

    Attributes:
        base_model_name: hub id or folder of the model that the run started from.
        card_data: description of the data (Markdown).
        card_recipe: further values of the recipe.
    """

    base_model_name: str | None = None
    card_data: str | None = None
    card_recipe: dict | None = None

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """Writes README.md to the output folder. Licence and hub ids of the data are `hub_license` and `hub_datasets` of the arguments.

        Args:
            model_name: title, the hub id or the name of the folder by default.
            dataset_name: hub id of a dataset, in addition to `hub_datasets`.
            tags: one tag or several, in addition to those of the trainer.
        """
        if self.is_world_process_zero():
            datasets = [*(getattr(self.args, "hub_datasets", None) or ()), *([dataset_name] if dataset_name else [])]
            write_model_card(self, model_name, datasets, [tags] if isinstance(tags, str) else tags or ())


def write_model_card(trainer: Trainer, model_name: str | None = None, datasets: Sequence[str] = (), tags: Sequence[str] = ()) -> Path:
    """Writes README.md to the output folder of a run.

    Args:
        trainer: with the methods of `ModelCardMixin`, before, during or after training.
        model_name: title of the card; the folder's name by default.
        datasets: hub ids of the training data.
        tags: in addition to those of the trainer.
    """
    folder = Path(trainer.args.output_dir)
    versions = f"transformers {transformers.__version__}, TRL {trl.__version__}, PEFT {peft.__version__}"
    recipe = yaml.safe_dump({**(trainer.card_recipe or {}), **_recipe(trainer)}, sort_keys=False).strip()
    training = (
        f"Trained with [llava-st-hf](https://pypi.org/project/llava-st-hf/) {__version__} ({versions}).\n\n"
        f"### Data\n\n{trainer.card_data or 'Samples of chat messages.'}\n\n"
        f"### Recipe\n\n```yaml\n{recipe}\n```\n\n### Metrics\n\n{_metrics_table(_metrics(trainer))}"
    )
    card = model_card(
        model_name or getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id or folder.name,
        base_model=trainer.base_model_name or trainer.model.config.name_or_path,
        datasets=datasets,
        license=getattr(trainer.args, "hub_license", None),
        library_name="peft" if isinstance(trainer.model, peft.PeftModel) else "transformers",
        training=training,
        tags=[*trainer._tag_names, *tags],
    )
    write_card(folder, card)
    return folder / CARD


def _metrics_table(metrics: list[tuple[str, tuple[float, int]]]) -> str:
    if not metrics:
        return "None yet."
    rows = [f"| {name} | {value:.4g} | {step} |" for name, (value, step) in metrics]
    return "\n".join(["| metric | last value | at step |", "|---|---|---|", *rows])


def describe_mixture(path: str | os.PathLike, dataset) -> str:
    """Returns a Markdown table of a mixture: the number of samples of each source, format and task.

    Args:
        path: of the mixture file.
        dataset: the result of `load_mixture`. The samples of a streamed dataset are not counted.
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


def _recipe(trainer) -> dict:
    args = trainer.args
    names = (
        "trainable_modules", "learning_rate", "learning_rates", "num_train_epochs", "max_steps", "per_device_train_batch_size",
        "gradient_accumulation_steps", "world_size", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "max_length",
        "train_sampling_strategy", "loss_on", "answer_coordinates", "seed", "bf16", "muon",
    )  # fmt: skip
    recipe = {name: getattr(args, name, None) for name in names}
    recipe["optim"] = str(getattr(args.optim, "value", args.optim))
    recipe["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return {name: value for name, value in recipe.items() if value is not None}


def _metrics(trainer) -> list[tuple[str, tuple[float, int]]]:
    """Returns `(name, (last value, step))` of every metric that was logged, sorted by name."""
    last: dict[str, tuple[float, int]] = {}
    for entry in trainer.state.log_history:
        for name, value in entry.items():
            if name not in _NOT_METRICS and not name.endswith(_SPEED) and isinstance(value, (int, float)):
                last[name] = (value, entry.get("step", 0))
    return sorted(last.items())
