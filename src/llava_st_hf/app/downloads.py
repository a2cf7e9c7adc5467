# SPDX-License-Identifier: Apache-2.0
"""Downloads of an answer: the answer itself, annotated pictures, and all export formats."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from ..exports import FORMATS, export
from ..model.results_llava_st import Grounding
from ..visualization import draw
from .visits import Medium


# Last part of the URL → (label, kinds of media, suffix) of what `llava_st_hf.draw` writes.
_PICTURES = {
    "annotated-video": ("Annotated video", ("video",), ".mp4"),
    "contact-sheet": ("Contact sheet", ("video",), ".png"),
    "annotated-image": ("Annotated image", ("image",), ".png"),
}
_ANSWER = "answer"
_BOTH = ["image", "video"]


def listed_downloads() -> list[dict]:
    """`{"path", "label", "title", "kinds"}` of each download: last part of its URL, texts for visitors, kinds of media."""
    pictures = [{"path": name, "label": label, "title": label, "kinds": list(kinds)} for name, (label, kinds, _) in _PICTURES.items()]
    formats = [
        {"path": name, "label": f"{name} ({format.suffix})", "title": format.description, "kinds": _BOTH}
        for name, format in FORMATS.items()
    ]
    return [*pictures, {"path": _ANSWER, "label": "Answer (.json)", "title": "The answer of the pipeline", "kinds": _BOTH}, *formats]


def write_download(grounding: Grounding, medium: Medium, name: str, folder: Path) -> tuple[Path, str]:
    """
    Writes one download of an answer.

    Args:
        grounding: its `source` is the name of the file on the visitor's computer.
        medium: the image or video.
        name: "path" of one of `listed_downloads`.
        folder: in which the file is written, under a name of its own.

    Returns:
        `(path, name)`: of the file, and the name under which the visitor gets it. Several files of one format are a ZIP archive.

    Raises:
        ValueError, ImportError: for an answer that the format cannot hold, and for a format that is unknown or not installed.
    """
    stem = Path(medium.name).stem or "answer"
    if name in _PICTURES:
        suffix = _PICTURES[name][2]
    elif name == _ANSWER:
        suffix = ".json"
    elif name in FORMATS:
        suffix = FORMATS[name].suffix
    else:
        raise ValueError(f"{name!r:.50} is not a download.")
    target = Path(tempfile.mkdtemp(prefix="download-", dir=folder))
    try:
        path = target / f"{stem}-{name}{suffix}"
        _write(grounding, medium, name, path)
        if len(list(target.rglob("*"))) == 1:
            return path, path.name
        archive = Path(shutil.make_archive(str(target), "zip", target))
    except BaseException:
        shutil.rmtree(target)
        raise
    shutil.rmtree(target)
    return archive, f"{stem}-{name}.zip"


def _write(grounding: Grounding, medium: Medium, name: str, path: Path) -> None:
    if name in _PICTURES:
        draw(str(medium.path), grounding, str(path))
    elif name == _ANSWER:
        path.write_text(grounding.to_json(indent=2), encoding="utf-8")
    else:
        export(replace(grounding, source=medium.name), path, name)


__all__ = ["listed_downloads", "write_download"]
