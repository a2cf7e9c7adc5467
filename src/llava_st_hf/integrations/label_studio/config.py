# SPDX-License-Identifier: Apache-2.0
"""Labeling configurations of Label Studio projects, and the questions that they ask (https://labelstud.io/tags/)."""

from dataclasses import dataclass
from xml.etree import ElementTree

from ...exports.label_studio import DEFAULT_FPS, Controls


#: Tags whose labels are those of spans, of tracks, and of rectangles in images.
_SPAN_TAG, _TRACK_LABELS, _IMAGE_TAG = "TimelineLabels", "Labels", "RectangleLabels"


@dataclass(frozen=True)
class Label:
    """
    A label of the configuration.

    Args:
        value: its name.
        text: the question about it: its `hint`, else its name.
        controls: tags that its regions belong to.
    """

    value: str
    text: str
    controls: Controls

    @property
    def task(self) -> str:
        """Key of `TASKS`: boxes and span of a video, its span alone, or boxes of an image."""
        if self.controls.media_kind == "image":
            return "rec"
        return "tvg" if self.controls.boxes is None else "stvg"


@dataclass(frozen=True)
class LabelingConfig:
    """
    What a labeling configuration states about one image or video.

    Args:
        kind: "image" or "video".
        data_key: of the data of a task, with the image or video.
        labels: in the order of the configuration.
        frame_rate: of `<Video>`: a number, or "$" and a key of the data of a task; None without.
    """

    kind: str
    data_key: str
    labels: tuple[Label, ...]
    frame_rate: str | None = None

    def fps(self, data: dict) -> float:
        """
        Frames per second by which Label Studio counts the frames of a task.

        Raises:
            ValueError: if the task lacks the value or it is not a positive number.
        """
        if self.frame_rate is None:
            return DEFAULT_FPS
        value = data.get(self.frame_rate[1:]) if self.frame_rate.startswith("$") else self.frame_rate
        try:
            fps = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            fps = 0.0
        if not 0 < fps < float("inf"):
            raise ValueError(f"frameRate={self.frame_rate!r} of <Video> must be a positive number; it is {value!r} for this task.")
        return fps if fps >= 1 else 1 / fps  # Label Studio takes numbers below 1 as seconds per frame


def read_config(xml: str) -> LabelingConfig:
    """
    Reads a labeling configuration with one `<Video>` and `<VideoRectangle>`, `<TimelineLabels>` or both, or with one `<Image>` and
    `<RectangleLabels>`. Other tags are ignored.

    Raises:
        ValueError: if it is not valid XML, or has no such tags or no labels.
    """
    if not isinstance(xml, str) or "<!" in xml.replace("<!--", ""):
        raise ValueError("The labeling configuration must be XML without document type and entities.")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"The labeling configuration is not valid XML: {error}.") from error
    media = [tag for tag in root.iter() if tag.tag in ("Video", "Image") and tag.get("name") and (tag.get("value") or "").startswith("$")]
    if len(media) != 1:
        raise ValueError(f'The labeling configuration must have one <Video> or <Image> with name and value="$…"; it has {len(media)}.')
    (object,) = media
    name, kind = str(object.get("name")), object.tag.lower()
    tags = [tag for tag in root.iter() if name in (tag.get("toName") or "").split(",")]
    boxes: dict[str, str] = {}
    spans: dict[str, str] = {}
    texts: dict[str, str] = {}
    rectangles = next((str(tag.get("name")) for tag in tags if tag.tag == "VideoRectangle"), None)
    for tag in tags:
        if tag.tag not in ((_SPAN_TAG, _TRACK_LABELS) if kind == "video" else (_IMAGE_TAG,)):
            continue
        for label in tag.iter("Label"):
            value = label.get("value")
            if not value or not value.strip():
                raise ValueError(f"A <Label> of <{tag.tag} name={tag.get('name')!r}> has no value.")
            if tag.tag == _SPAN_TAG:
                spans.setdefault(value, str(tag.get("name")))
            elif tag.tag == _IMAGE_TAG:
                boxes.setdefault(value, str(tag.get("name")))
            elif rectangles is not None:
                boxes.setdefault(value, rectangles)
            else:
                continue
            texts.setdefault(value, label.get("hint") or value)
    if not texts:
        needed = "<VideoRectangle> and <Labels>, or <TimelineLabels>," if kind == "video" else "<RectangleLabels>"
        raise ValueError(f"The labeling configuration must have {needed} with toName={name!r} and a <Label>.")
    labels = [Label(value, text, Controls(name, boxes.get(value), spans.get(value), kind)) for value, text in texts.items()]
    rate = next((value for key, value in object.items() if key.lower() == "framerate"), None)
    return LabelingConfig(kind, str(object.get("value"))[1:], tuple(labels), rate)


def questions(config: LabelingConfig, data: dict, text_key: str) -> list[tuple[str, Label]]:
    """
    The questions about a task.

    Args:
        config: of the project.
        data: of the task. If it has `text_key`, this text, or list of texts, is asked instead of the labels; each text needs a label of
            the same name, unless the configuration has one label only.
        text_key: name of the field with the text.

    Returns:
        `[(text, label)]`.

    Raises:
        ValueError: naming the field or text that is not valid.
    """
    texts = data.get(text_key)
    if texts is None:
        return [(label.text, label) for label in config.labels]
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"The field {text_key!r} of the task must be a text or a list of texts, got {texts!r:.100}.")
    by_name = {label.value.casefold(): label for label in config.labels}
    found = []
    for text in texts:
        label = config.labels[0] if len(config.labels) == 1 else by_name.get(text.casefold())
        if label is None:
            names = ", ".join(label.value for label in config.labels)
            raise ValueError(
                f"The text {text[:100]!r} of the field {text_key!r} is not a label; with several labels it must be one of {names}."
            )
        found.append((text, label))
    return found
