# SPDX-License-Identifier: Apache-2.0
"""Answers as files of annotation tools, dataset formats, tables and subtitles."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..model.results_llava_st import Grounding
from . import coco_video, cvat, fiftyone, hc_stvg, label_studio, subtitles, tables, vidstg
from .detections import to_supervision
from .tracks import read_answers


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Format:
    """
    A file format.

    Args:
        suffix: usual suffix of its files.
        description: what the file is for, in one line.
        write: writes answers to a path and returns notes about what was left out or changed.
    """

    suffix: str
    description: str
    write: Callable[[list[Grounding], Path], list[str]]


#: The formats of `export`.
FORMATS = {
    "coco-video": Format(".json", "COCO JSON with videos and tracks (TAO's layout); images as in COCO", coco_video.write),
    "cvat": Format(".xml", "CVAT for video 1.1 (tracks of one video), or CVAT for images 1.1", cvat.write),
    "label-studio": Format(".json", "Label Studio tasks with predictions: tracks and spans, or rectangles of images", label_studio.write),
    "fiftyone": Format(".json", "FiftyOne dataset: temporal detections and detections of frames", fiftyone.write),
    "vidstg": Format(".json", "VidSTG sentences, with the boxes in VidOR's layout in the folder boxes beside them", vidstg.write),
    "hc-stvg": Format(".json", "HC-STVG version 1: one sentence and tube per video", hc_stvg.write),
    "parquet": Format(".parquet", "table with a row per box", tables.write_parquet),
    "csv": Format(".csv", "table with a row per box", tables.write_csv),
    "webvtt": Format(".vtt", "subtitles with the spans of one video", subtitles.write_webvtt),
    "srt": Format(".srt", "subtitles with the spans of one video", subtitles.write_srt),
}


def export(groundings: Grounding | Mapping[str, Any] | Iterable, path: str | os.PathLike, format: str | None = None) -> list[str]:
    """
    Writes answers to a file.

    Args:
        groundings: one `Grounding` or answer dictionary, or several, about the same or different images and videos. Most formats need
            their `source`, the path or URL of the image or video.
        path: of the file, which is replaced if it exists.
        format: a key of `FORMATS`; None for the one that the suffix of `path` belongs to, if there is only one.

    Returns:
        Notes about what the format cannot hold and what was changed, one sentence each. They are logged as warnings, too.

    Raises:
        ValueError: for an unknown format, an answer that is not valid or lacks what the format needs, and media that the format is not for.
        ImportError: if the format needs a library that is not installed: `pip install "llava-st-hf[export]"`.
        OSError: naming the file, if it cannot be written.
    """
    path = Path(path)
    name = _guessed(path) if format is None else format
    if name not in FORMATS:
        raise ValueError(f"format={name!r} is not a format; it must be one of {', '.join(FORMATS)}.")
    answers = read_answers(groundings)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {path.parent} does not exist.")
    try:
        notes = FORMATS[name].write(answers, path)
    except ModuleNotFoundError as error:
        raise ImportError(f"The format {name!r} needs {error.name}: pip install 'llava-st-hf[export]'.") from error
    for note in notes:
        logger.warning("%s: %s", path, note)
    return notes


def _guessed(path: Path) -> str:
    found = [name for name, format in FORMATS.items() if format.suffix == path.suffix.lower()]
    if len(found) != 1:
        choices = found or list(FORMATS)
        raise ValueError(f"The format of {str(path)!r} is not clear from its suffix: give format, one of {', '.join(choices)}.")
    return found[0]


__all__ = ["FORMATS", "Format", "export", "to_supervision"]
