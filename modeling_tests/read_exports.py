# SPDX-License-Identifier: Apache-2.0
"""Reads exported files with the annotation tools' own libraries, which are too large for the environment of the tests.

    python -m modeling_tests.read_exports write files          # environment of the tests
    pip install fiftyone==1.22.1 mongomock==4.3.0 label-studio-sdk==2.1.2 datumaro==1.13.12 pycocotools    # another one, about 1.2 GB
    python modeling_tests/read_exports.py read files           # in that one

FiftyOne reads into a MongoDB database, which mongomock replaces in memory.
"""

import json
import os
import sys
from pathlib import Path


def write(folder: Path) -> None:
    """Exports the answers of `export_answers.py`, with what a reader must find in `expected.json`: sides of boxes by event and frame."""
    from llava_st_hf.exports import FORMATS, export
    from llava_st_hf.exports.label_studio import label_config
    from modeling_tests.export_answers import image_answer, several_events, two_videos

    for name, answers in {"one": [several_events()], "two": two_videos(), "image": [image_answer()]}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for format in ("coco-video", "cvat", "label-studio", "fiftyone"):
            if (name, format) != ("two", "cvat"):
                export(answers, folder / name / f"{format}{FORMATS[format].suffix}", format)
        (folder / name / "config.xml").write_text(label_config(answers), encoding="utf-8")
    expected = []
    for number, event in enumerate(several_events().events):
        sides = {box.frame: box.clipped(640, 480).xyxy for box in event.boxes}
        expected.append({"label": " ".join(event.caption.split()), "boxes": sides, "number": number})
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def read_label_studio(folder: Path, expected: list[dict]) -> None:
    """Validates the predictions against the labeling configuration."""
    from label_studio_sdk.label_interface import LabelInterface

    for name in ("one", "two", "image"):
        interface = LabelInterface((folder / name / "config.xml").read_text(encoding="utf-8"))
        interface.validate()
        tasks = json.loads((folder / name / "label-studio.json").read_text(encoding="utf-8"))
        for task in tasks:
            assert interface.validate_task({"data": task["data"]}), task["data"]
            for prediction in task["predictions"]:
                assert interface.validate_prediction(prediction, return_errors=True) == []
        broken = json.loads(json.dumps(tasks[0]["predictions"][0]))
        broken["result"][0]["from_name"] = "no such tag"
        assert interface.validate_prediction(broken, return_errors=True)


def read_cvat(folder: Path, expected: list[dict]) -> None:
    """Imports the XML as datumaro does for CVAT."""
    import datumaro

    dataset = datumaro.Dataset.import_from(str(folder / "one" / "cvat.xml"), "cvat")
    labels = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    found: dict = {}
    for item in dataset:
        for box in item.annotations:
            if not box.attributes["outside"]:
                frame = int(item.id.removeprefix("frame_"))
                assert box.attributes["keyframe"] and labels[box.label] == expected[box.attributes["track_id"]]["label"]
                found.setdefault(box.attributes["track_id"], {})[frame] = box.points
    for event in expected:
        compare(found.get(event["number"], {}), event["boxes"])


def read_coco(folder: Path, expected: list[dict]) -> None:
    from pycocotools.coco import COCO

    for name, count in (("one", 1), ("two", 2), ("image", 0)):
        coco = COCO(str(folder / name / "coco-video.json"))
        assert len(coco.dataset["videos"]) == count
    coco = COCO(str(folder / "one" / "coco-video.json"))
    for event, track in zip(expected, coco.dataset["tracks"], strict=True):
        assert coco.cats[track["category_id"]]["name"] == event["label"]
        boxes = [
            annotation for annotation in coco.anns.values() if annotation["track_id"] == track["id"] and not annotation["interpolated"]
        ]
        found = {coco.imgs[box["image_id"]]["frame_index"]: box["bbox"] for box in boxes}
        compare({frame: (x, y, x + w, y + h) for frame, (x, y, w, h) in found.items()}, event["boxes"])


def read_fiftyone(folder: Path, expected: list[dict]) -> None:
    """Loads the JSON with `Dataset.from_json`."""
    fiftyone = _fiftyone()
    dataset = fiftyone.Dataset.from_json(str(folder / "one" / "fiftyone.json"), name="one")
    assert dataset.media_type == "video" and len(dataset) == 1
    sample = dataset.first()
    events = sample["events"].detections
    assert [event.label for event in events] == [event["label"] for event in expected]
    for event, detection in zip(expected, events, strict=True):
        if event["boxes"]:
            frames = [int(frame) for frame in event["boxes"]]
            assert detection.support == [min(frames) + 1, max(frames) + 1]
        found = {}
        for number, frame in sample.frames.items():
            for box in frame["boxes"].detections:
                if box.index == detection.index and not box["interpolated"]:
                    x, y, width, height = box.bounding_box
                    found[number - 1] = (x * 640, y * 480, (x + width) * 640, (y + height) * 480)
        compare(found, event["boxes"])
    assert len(fiftyone.Dataset.from_json(str(folder / "two" / "fiftyone.json"), name="two")) == 2
    image = fiftyone.Dataset.from_json(str(folder / "image" / "fiftyone.json"), name="image").first()
    assert [box.label for box in image["boxes"].detections][1:] == ["a cat", "a cat"]


def _fiftyone():
    """The module with databases in memory."""
    import mongomock
    import pymongo
    from mongomock.store import ServerStore

    store = ServerStore()

    class Client(mongomock.MongoClient):
        def __init__(self, *args, **kwargs):
            super().__init__(_store=store, tz_aware=kwargs.get("tz_aware", False))

    pymongo.MongoClient = Client
    os.environ.update(FIFTYONE_DISABLE_SERVICES="1", FIFTYONE_DATABASE_URI="mongodb://localhost", FIFTYONE_DO_NOT_TRACK="1")
    os.environ["FIFTYONE_DATABASE_VALIDATION"] = "false"
    import fiftyone
    import mongoengine
    from fiftyone.core.odm import database

    connect = mongoengine.connect
    mongoengine.connect = lambda name, **_: connect(name, mongo_client_class=Client, uuidRepresentation="standard")
    database._validate_db_version = lambda *args, **kwargs: None
    database._is_client_closed = lambda client: client is None
    return fiftyone


def compare(found: dict, expected: dict) -> None:
    """Checks that both have the same frames, and sides that differ by at most 0.02 pixels."""
    assert {int(frame) for frame in found} == {int(frame) for frame in expected}, (found, expected)
    for frame, sides in expected.items():
        assert all(abs(a - b) <= 0.02 for a, b in zip(found[int(frame)], sides, strict=True)), (found, expected)


def read(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for reader in (read_label_studio, read_cvat, read_coco, read_fiftyone):
        reader(folder, expected)
        print(f"{reader.__name__}: ok", flush=True)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
