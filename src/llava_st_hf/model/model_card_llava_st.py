# SPDX-License-Identifier: Apache-2.0
"""Model cards: metadata that the hub validates, use in five lines, tasks with a picture, training, limits and citation."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from PIL import Image, ImageDraw
from transformers.utils import PushToHubMixin


CARD = "README.md"
PICTURE = "grounding.png"
MAX_SHARD_SIZE = "5GB"  # a failed transfer repeats one file
TAGS = ("llava-st", "video-grounding", "spatio-temporal-grounding", "multimodal")
_BLANK = "This model card has been automatically generated."  # in the card that transformers uploads where a repository has none
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_USE = """\
from transformers import pipeline
import llava_st_hf  # or, without this package: pipeline(…, trust_remote_code=True)

grounder = pipeline("video-grounding", model="{repo_id}")
print(grounder("clip.mp4", task="tvg", text="a person opens the door"))"""
_USE_ADAPTER = """\
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
import llava_st_hf

model = AutoModelForImageTextToText.from_pretrained("{base}")
model.load_adapter("{repo_id}")
grounder = pipeline("video-grounding", model=model, processor=AutoProcessor.from_pretrained("{base}"))
print(grounder("clip.mp4", task="tvg", text="a person opens the door"))"""
_TASKS = f"""\
![Frames of a video with the bounding box of an object, and the time span of an event below]({PICTURE})

| `task` | input → output |
|---|---|
| `rec` | image, expression → box |
| `reg` | image, box → phrase |
| `dgc` | image → caption with boxes |
| `tvg` | video, sentence → time span |
| `tr` | video, time span → description |
| `stvg` | video, sentence → time span and a box in each sampled frame |
| `svg` | video, time span and sentence → a box in each sampled frame |
| `elc` | video, start time and box → end time, description, boxes |

Times are seconds from the start of the file, boxes pixels of the original image or frame."""
_LIMITS = """\
Coordinates are predicted as bins: a hundredth of the clip in time, and a hundredth of width and height in space, unless the configuration
has other numbers. Frames are sampled evenly over the clip, so events shorter than the distance of two samples may be missed. Answers may
describe events that do not occur in the video. Not for decisions about persons."""
_CITATION = """\
@inproceedings{li2025llavast,
  title     = {LLaVA-ST: A Multimodal Large Language Model for Fine-Grained Spatial-Temporal Understanding},
  author    = {Li, Hongyu and Chen, Jinyu and Wei, Ziyu and Huang, Shaofei and Hui, Tianrui and Gao, Jialin and Wei, Xiaoming and Liu, Si},
  booktitle = {CVPR},
  year      = {2025},
  note      = {arXiv:2501.08282}
}"""


def hub_id(name: str | None) -> str | None:
    """Returns `name` if it is the id of a hub repository and no local path, else None."""
    if name and not os.path.exists(name) and _HUB_ID.fullmatch(name):
        return name
    return None


def check_card(license: str | None, datasets: Sequence[str]) -> None:
    """Raises a `ValueError` for a licence or dataset that is not an identifier of the hub."""
    for dataset in datasets:
        if hub_id(dataset) is None:
            raise ValueError(f"A dataset of a card must be a hub id such as owner/name, got {dataset!r}.")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(f'license must be an identifier of the hub, such as "apache-2.0", got {license!r}.')


def usage(repo_id: str, library_name: str = "transformers", base_model: str | None = None) -> str:
    """Returns the lines of Python in a card that load the model, or an adapter (`library_name="peft"`) with its base model, and use it."""
    if library_name == "peft":
        return _USE_ADAPTER.format(repo_id=repo_id, base=base_model or "BASE")
    return _USE.format(repo_id=repo_id)


def model_card(
    repo_id: str,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    license: str | None = None,
    library_name: str = "transformers",
    results: Sequence[EvalResult] = (),
    training: str | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """
    Builds the card of a model.

    Args:
        repo_id: hub id that the model is or will be published under, or a title.
        base_model: hub id of the model that it was trained from; local paths are left out, because readers do not have them.
        datasets: hub ids of training data.
        license: identifier of the hub, such as "apache-2.0". Without one the card states that the publisher has not set it.
        library_name: "transformers", or "peft" for an adapter.
        results: of evaluations, for the `model-index`.
        training: Markdown about data, recipe and metrics.
        tags: in addition to `TAGS`.

    Raises:
        ValueError: for a licence, base model or dataset that is not an identifier of the hub.
    """
    base = hub_id(base_model)
    check_card(license, datasets)
    data = ModelCardData(
        library_name=library_name,
        pipeline_tag="video-text-to-text",
        license=license,
        base_model=base,
        datasets=list(datasets) or None,
        tags=list(dict.fromkeys([*TAGS, *tags])),
        model_name=repo_id if results else None,
        eval_results=list(results) or None,
    )
    install = "pip install llava-st-hf peft" if library_name == "peft" else "pip install llava-st-hf"
    rights = "" if license else "\n\nThe publisher has not stated a licence; that of the base model and of the training data apply."
    derived = f"Derived from [{base}](https://huggingface.co/{base}). " if base else ""
    parts = {
        "Use": f"```bash\n{install}\n```\n\n```python\n{usage(repo_id, library_name, base)}\n```",
        "Tasks": _TASKS,
        "Training": training or f"{derived}No training recipe is recorded.",
        "Limits": _LIMITS + rights,
        "Citation": f"```bibtex\n{_CITATION}\n```",
    }
    body = "\n\n".join(f"## {heading}\n\n{text}" for heading, text in parts.items())
    intro = (
        "LLaVA-ST ([CVPR 2025](https://arxiv.org/abs/2501.08282)), a multimodal language model for spatio-temporal video grounding. It\n"
        "predicts the time span of an event in a video, and the bounding boxes of an object in its frames. `pip install llava-st-hf`\n"
        "installs the code; a copy of it in this repository is loaded by `trust_remote_code=True`."
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {repo_id}\n\n{intro}\n\n{body}\n")


def draw_picture() -> Image.Image:
    """Draws the picture of a card: four frames of a moving object with its bounding box, and the time span of the event."""
    width, height, gap = 160, 110, 8
    picture = Image.new("RGB", (4 * width + 5 * gap, height + 52), "white")
    draw = ImageDraw.Draw(picture)
    for number in range(4):
        left, top = gap + number * (width + gap), gap
        draw.rectangle((left, top, left + width, top + height), fill=(222, 226, 230))
        x, y = left + 16 + 30 * number, top + 30 + 8 * number
        draw.ellipse((x, y, x + 36, y + 36), fill=(40, 60, 210))
        if number in (1, 2):
            draw.rectangle((x - 3, y - 3, x + 39, y + 39), outline=(240, 120, 0), width=3)
    line, right = height + 30, picture.width - gap
    draw.line((gap, line, right, line), fill=(120, 120, 120), width=2)
    draw.rectangle((gap + width, line - 6, gap + 3 * width, line + 6), fill=(240, 120, 0))
    draw.text((gap, line + 8), "0.0 s", fill=(60, 60, 60))
    draw.text((gap + width, line + 8), "start", fill=(60, 60, 60))
    draw.text((gap + 3 * width - 20, line + 8), "end", fill=(60, 60, 60))
    return picture


def write_card(folder: str | os.PathLike, card: ModelCard) -> None:
    """Writes a card and its picture to a folder. A card that is there is replaced."""
    card.save(Path(folder, CARD))
    draw_picture().save(Path(folder, PICTURE))


def card_of(repo_id: str, token: str | None = None) -> ModelCard | None:
    """Returns the card of a hub repository, or None where there is none."""
    try:
        return ModelCard.load(repo_id, token=token)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None


class LlavaSTPushToHubMixin(PushToHubMixin):
    """Adds a model card to what `push_to_hub` uploads, unless the repository has one already. Weights are uploaded in safetensors files of
    at most 5 GB by default."""

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str | None = MAX_SHARD_SIZE, **kwargs) -> str:
        """Same as in transformers."""
        return super().push_to_hub(repo_id, max_shard_size=max_shard_size, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, *args, token=None, **kwargs):
        # All ways of transformers to upload a part end here: `push_to_hub`, and `save_pretrained(push_to_hub=True)`.
        path = Path(working_dir, CARD)
        if not _has_card(path, repo_id, token):
            config = getattr(self, "config", None) or getattr(getattr(self, "model", None), "config", None)
            base = getattr(config, "name_or_path", None)
            write_card(working_dir, model_card(repo_id, base_model=base if base != repo_id else None))
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, token=token, **kwargs)


def _has_card(path: Path, repo_id: str, token) -> bool:
    if path.is_file():
        return _BLANK not in path.read_text(encoding="utf-8")
    return card_of(repo_id, token) is not None
