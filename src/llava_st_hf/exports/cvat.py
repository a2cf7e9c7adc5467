# SPDX-License-Identifier: Apache-2.0
"""CVAT's XML formats 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/): "CVAT for video" with a track per event, or
"CVAT for images" for answers about images.

- Frames are numbered from 0 in the file, as in a CVAT task with all frames (start frame 0, step 1). Times are not in the file, so a
  variable frame rate makes no difference. Boxes are `xtl`, `ytl`, `xbr`, `ybr` in pixels of the upright frame.
- Boxes of the answer are keyframes; CVAT interpolates between them. A box with `outside="1"` in the frame after the last one ends the
  track, unless that was the last frame of the video.
- The label is the caption, else the query, shortened to CVAT's limit of 64 characters; the attributes `caption` and `score` have the whole
  caption and the expected IoU. A CVAT task accepts the file if it has these labels: they are in `meta/task/labels`, and `task_labels`
  returns them in the form of CVAT's raw label editor.

Not in the file: events without boxes, spans that extend beyond the first and last box, masks.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..files import write_file
from ..model.results_llava_st import Box, Grounding
from .tracks import (
    Track,
    by_source,
    file_names,
    media_of,
    one_kind,
    one_video,
    read_answers,
    read_tracks,
    report_missing,
)


LABEL_LENGTH = 64
_ATTRIBUTES = ("caption", "score")


def label_of(text: str) -> str:
    """`text` within CVAT's limit of the length of labels."""
    return text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1].rstrip()}…"


def task_labels(groundings) -> list[dict[str, Any]]:
    """
    The labels that a CVAT task needs before the file is uploaded, for its raw label editor or `TaskWriteRequest(labels=…)` of `cvat-sdk`.

    Args:
        groundings: as for `export`.
    """
    attributes = [
        {"name": name, "mutable": name == "score", "input_type": "text", "default_value": "", "values": []} for name in _ATTRIBUTES
    ]
    names = dict.fromkeys(label_of(track.label) for track in read_tracks(read_answers(groundings)))
    return [{"name": name, "attributes": attributes} for name in names]


def write(answers: list[Grounding], path: Path) -> list[str]:
    """Writes the file. Returns notes about what was left out or changed."""
    notes: list[str] = []
    kind = one_kind(answers, "cvat")
    tracks_of = by_source(answers)
    if kind == "video":
        one_video(answers, "cvat")
    names = file_names(tracks_of)
    root = ElementTree.Element("annotations")
    _add(root, "version", "1.1")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    source = next(iter(tracks_of))
    media = media_of(answers, source)
    _add(task, "name", names[source])
    _add(task, "size", media.last_frame_of_file + 1 if kind == "video" else len(tracks_of))
    _add(task, "mode", "interpolation" if kind == "video" else "annotation")
    _add_labels(task, answers)
    if kind == "video":
        _add(task, "start_frame", 0)
        _add(task, "stop_frame", media.last_frame_of_file)
        original = ElementTree.SubElement(task, "original_size")
        _add(original, "width", media.width)
        _add(original, "height", media.height)
        _add(task, "source", names[source])
        for track in tracks_of[source]:
            _add_track(root, track, notes)
    else:
        for number, (source, tracks) in enumerate(tracks_of.items()):
            media = media_of(answers, source)
            image = ElementTree.SubElement(
                root, "image", id=str(number), name=names[source], width=str(media.width), height=str(media.height)
            )
            for track in tracks:
                boxes = track.boxes(notes)
                for box in boxes:
                    _add_box(image, box, track, {"label": label_of(track.label), "occluded": "0"})
                if not boxes:
                    notes.append(f"{track.name} of {names[source]} has no boxes and was left out.")
    everything = [track for tracks in tracks_of.values() for track in tracks]
    report_missing(everything, ("masks", "presence"), "cvat", notes)
    ElementTree.indent(root)
    write_file(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    return notes


def _add_track(root: ElementTree.Element, track: Track, notes: list[str]) -> None:
    boxes = track.key_boxes(notes)
    if not boxes:
        notes.append(f"{track.name} has no boxes and was left out: a CVAT track needs one.")
        return
    if track.event.span is not None and (track.frames.start < min(boxes) or track.frames.stop - 1 > max(boxes)):
        span = f"{track.frames.start} to {track.frames.stop - 1}"
        notes.append(f"{track.name} lasts from frame {span}, but its boxes and its CVAT track from {min(boxes)} to {max(boxes)}.")
    element = ElementTree.SubElement(root, "track", id=str(track.number - 1), label=label_of(track.label), source="auto")
    for frame, box in boxes.items():
        _add_box(element, box, track, {"frame": str(frame), "outside": "0", "occluded": "0", "keyframe": "1"})
    if frame < track.media.last_frame_of_file:
        _add_box(element, box, track, {"frame": str(frame + 1), "outside": "1", "occluded": "0", "keyframe": "1"})


def _add_box(parent: ElementTree.Element, box: Box, track: Track, attributes: dict[str, str]) -> None:
    corners = {name: f"{value:.2f}" for name, value in zip(("xtl", "ytl", "xbr", "ybr"), box.xyxy, strict=True)}
    element = ElementTree.SubElement(parent, "box", {**attributes, "source": "auto", **corners, "z_order": "0"})
    score = track.event.score if box.score is None else box.score
    values = {"caption": track.text, "score": None if score is None else f"{score:.4f}"}
    for name, value in values.items():
        if value is not None:
            ElementTree.SubElement(element, "attribute", name=name).text = value


def _add_labels(task: ElementTree.Element, answers: list[Grounding]) -> None:
    labels = ElementTree.SubElement(task, "labels")
    for label in task_labels(answers):
        element = ElementTree.SubElement(labels, "label")
        _add(element, "name", label["name"])
        attributes = ElementTree.SubElement(element, "attributes")
        for attribute in label["attributes"]:
            described = ElementTree.SubElement(attributes, "attribute")
            for name in ("name", "mutable", "input_type", "default_value"):
                _add(described, name, attribute[name])
            _add(described, "values", "")


def _add(parent: ElementTree.Element, name: str, value) -> None:
    ElementTree.SubElement(parent, name).text = str(value)
