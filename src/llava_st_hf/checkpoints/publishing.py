# SPDX-License-Identifier: Apache-2.0
"""Uploads model and adapter folders: weights as safetensors, code, and a card; nothing of the machine that trained them."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import custom_object_save

from ..model.checks_llava_st import is_finite_number
from ..model.configuration_llava_st import LlavaSTConfig
from ..model.model_card_llava_st import CARD, PICTURE, card_of, hub_id, model_card, usage, write_card
from ..model.modeling_llava_st import LlavaSTForConditionalGeneration
from ..model.processing_llava_st import LlavaSTProcessor
from .conversion import ADAPTER_CONFIG
from .fingerprint import FINGERPRINT, read_fingerprint


# Files that are uploaded as they are. Configurations, processor and code are written anew, all else stays on the machine: checkpoints,
# logs and settings of a run, its arguments as a pickle, and the base model of an adapter.
_UPLOADED = (
    *("*.safetensors", "*.safetensors.index.json", "generation_config.json", FINGERPRINT, ADAPTER_CONFIG),
    *(CARD, PICTURE, "LICENSE*", "NOTICE*"),
)
_PROCESSOR = "processor_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_LOCAL_PATH = re.compile(r"(?<![\w:/.])(?:/[\w.@+-]+){2,}|[A-Za-z]:\\[\w.]+")
_BOUNDS = ("_low", "_high")  # of the interval of a metric, in the scores of an evaluation


def publish_folder(
    folder: str | os.PathLike,
    repo_id: str,
    scores: Sequence[str | os.PathLike] = (),
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> str:
    """
    Uploads a folder with a model or a PEFT adapter, its code and a model card.

    Args:
        folder: is not changed. A card in it, or else that of the repository, is kept and gets the metadata that the arguments give. In a
            card that this package wrote, title and lines of use get the hub id.
        repo_id: of the hub repository, which is created if it does not exist.
        scores: paths of `scores.json` files of evaluations, for the card's model-index.
        base_model: hub id, for the card and for the configuration of an adapter; by default that of the adapter.
        datasets, license: for the card.
        private: whether a new repository is private.
        revision, token, commit_message: of the upload.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: before anything is uploaded, naming the file, if weights are pickled, a configuration or card contains a local path, or
            an argument or `scores.json` is not valid.
        OSError: if files are missing or cannot be read, or the upload fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        stage_folder(folder, staged, repo_id, scores, base_model, datasets, license)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if not Path(folder, CARD).is_file() and (card := card_of(repo_id, token)) is not None:
            _add_metadata(card, ModelCard.load(staged / CARD))
            card.save(staged / CARD)
        commit = api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message=commit_message, revision=revision)
        return commit.commit_url


def stage_folder(
    folder: str | os.PathLike,
    staged: Path,
    repo_id: str,
    scores: Sequence[str | os.PathLike] = (),
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str | None = None,
) -> None:
    """Writes what `publish_folder` uploads to the empty folder `staged`. Weights are linked and not copied."""
    folder = Path(folder)
    if base_model is not None and hub_id(base_model) is None:
        raise ValueError(f"base_model must be a hub id such as owner/name, got {base_model!r}.")
    results = [result for path in scores for result in read_results(path)]
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} contains neither a model (config.json) nor an adapter ({ADAPTER_CONFIG}).")
    _check_weights(folder, is_adapter)
    for pattern in _UPLOADED:
        for path in folder.glob(pattern):
            (staged / path.name).symlink_to(path.resolve())
    if is_adapter:
        base_model = _set_base(staged, base_model)
    else:
        _check_layout(folder)
        read_fingerprint(folder)  # an error if it is of other weights
        LlavaSTConfig.from_pretrained(folder).save_pretrained(staged)
        custom_object_save(LlavaSTForConditionalGeneration, staged)
        _check_code(staged)
    if (folder / _PROCESSOR).is_file():
        LlavaSTProcessor.from_pretrained(folder).save_pretrained(staged)
    _write_card(staged, is_adapter, repo_id, base_model, datasets, license, results)
    check_no_local_paths(staged)


def _check_weights(folder: Path, is_adapter: bool) -> None:
    stem = "adapter_model" if is_adapter else "model"
    pickled = [path.name for path in folder.iterdir() if path.suffix in _PICKLES and path.stem.startswith((stem, "pytorch_model"))]
    if pickled:
        raise ValueError(f"{folder}/{sorted(pickled)[0]} is a pickle, which can run code when it is loaded: save the model as safetensors.")
    files = {path.name: path for path in folder.glob(f"{stem}*.safetensors")}
    if not files:
        raise FileNotFoundError(f"{folder} has no {stem}*.safetensors.")
    index = folder / f"{stem}.safetensors.index.json"
    missing = set(_read_object(index)["weight_map"].values()) - files.keys() if index.is_file() else set()
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(sorted(missing))}, which {index.name} names.")
    for path in files.values():
        try:
            with safe_open(path, "pt"):  # compares the size of the file with its header
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _check_code(staged: Path) -> None:
    """Raises an error if `auto_map` of a model names code that is not uploaded, such as that of another repository."""
    for auto_class, reference in _read_object(staged / "config.json")["auto_map"].items():
        if not (staged / f"{reference.split('.')[0]}.py").is_file():
            raise ValueError(f"config.json names {reference} as the code of {auto_class}, which is not uploaded. Remove this entry.")


def _check_layout(folder: Path) -> None:
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type != LlavaSTConfig.model_type:
        raise ValueError(f"{folder} is a model of type {model_type!r}. Convert it with `llava-st convert {folder} OUTPUT` first.")
    if not (folder / _PROCESSOR).is_file():
        raise FileNotFoundError(f"{folder} has no {_PROCESSOR}, without which the model cannot be used. Save its processor there as well.")


def public_base(recorded: str | None) -> str:
    """
    Returns the hub id of the base model that an adapter records.

    Raises:
        ValueError: if it records none, or a local path, which others do not have.
    """
    base = hub_id(recorded)
    if base is None:
        reason = f"was trained on {recorded}, which is no hub id" if recorded else "does not name its base model"
        raise ValueError(
            f"The adapter {reason}: give the hub id of its base model (`llava-st push --base-model OWNER/NAME`), or merge the adapter with "
            "`llava-st merge-lora` and upload the result."
        )
    return base


def _set_base(staged: Path, base_model: str | None) -> str:
    """Writes the base model's hub id to the configuration of an adapter, and returns it."""
    path = staged / ADAPTER_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8"))
    base = base_model or public_base(settings.get("base_model_name_or_path"))
    path.unlink()  # a link
    path.write_text(json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n", encoding="utf-8")
    return base


def _write_card(staged: Path, is_adapter: bool, repo_id: str, base_model, datasets, license, results) -> None:
    path = staged / CARD
    library = "peft" if is_adapter else "transformers"
    new = model_card(repo_id, base_model, datasets, license, library, results)
    if not path.is_file():
        write_card(staged, new)
        return
    card = ModelCard.load(path)
    card.text = _with_repo_id(card, repo_id, library, base_model)
    _add_metadata(card, new)
    path.unlink()  # a link
    card.save(path)


def _add_metadata(card: ModelCard, new: ModelCard) -> None:
    """Copies the metadata of a new card that describes the model to a card that is kept, and the rest where that has none."""
    for name in ("base_model", "datasets", "license", "eval_results", "model_name"):
        if (value := getattr(new.data, name)) is not None:
            setattr(card.data, name, value)
    for name in ("library_name", "pipeline_tag", "tags"):
        if getattr(card.data, name) is None:
            setattr(card.data, name, getattr(new.data, name))


def _with_repo_id(card: ModelCard, repo_id: str, library: str, base_model: str | None) -> str:
    """Returns the text of a card. In one that this package wrote under the name of a folder, title and use get the hub id."""
    title = re.search(r"^# (.+)$", card.text, re.MULTILINE)
    if title is None:
        return card.text
    written = usage(title[1], library, card.data.base_model)
    if written not in card.text:  # a card of the user
        return card.text
    return card.text.replace(title[0], f"# {repo_id}", 1).replace(written, usage(repo_id, library, base_model or card.data.base_model))


def read_results(path: str | os.PathLike) -> list[EvalResult]:
    """
    Reads the results of an evaluation for a model-index.

    Args:
        path: of `scores.json` in the output folder of `llava-st eval`, whose `settings.json` names the benchmark.

    Raises:
        OSError, ValueError: naming the file that is missing or not valid.
    """
    path = Path(path)
    scores, settings = (_read_object(file) for file in (path, path.with_name("settings.json")))
    benchmark = settings.get("benchmark")
    if not isinstance(benchmark, str):
        raise ValueError(f"{path.with_name('settings.json')} does not name a benchmark.")
    results = []
    for protocol, metrics in scores.items():
        if not isinstance(metrics, dict):
            raise ValueError(f"{path} does not hold scores by protocol: {protocol!r} is {metrics!r:.100}.")
        for name, value in metrics.items():
            if name == "notes" or name.endswith(_BOUNDS):
                continue
            if not is_finite_number(value):
                raise ValueError(f"{path}: {protocol}.{name} must be a number, got {value!r:.100}.")
            shown = name if protocol == "default" else f"{name} ({protocol} protocol)"
            results.append(
                EvalResult(
                    task_type="video-text-to-text",
                    dataset_type=benchmark,
                    dataset_name=benchmark,
                    metric_type=name,
                    metric_name=shown,
                    metric_value=value,
                )
            )
    if not results:
        raise ValueError(f"{path} holds no scores.")
    return results


def _read_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds {content!r:.100}.")
    return content


def check_no_local_paths(folder: str | os.PathLike) -> None:
    """
    Checks configurations and card of a model folder.

    Raises:
        ValueError: naming the file and the absolute path in it.
    """
    for path in sorted(Path(folder).glob("*config.json")):
        for text in _strings(json.loads(path.read_text(encoding="utf-8"))):
            if _LOCAL_PATH.fullmatch(text):
                raise ValueError(f"{path.name} contains the local path {text}, which others do not have.")
    card = Path(folder, CARD)
    if card.is_file():
        for text in _LOCAL_PATH.findall(card.read_text(encoding="utf-8")):
            if os.path.exists(text):
                raise ValueError(f"{CARD} contains the local path {text}, which others do not have.")


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
