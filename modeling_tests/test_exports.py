# SPDX-License-Identifier: Apache-2.0
"""Every export format is read back, by the tool's own library where it is light; `read_exports.py` does it with the heavy ones."""

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import srt
import webvtt
from pyarrow import parquet
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import llava_st_hf
from llava_st_hf import Box, Event, Grounding, MediaInfo
from llava_st_hf.data.hc_stvg import read_hc_stvg
from llava_st_hf.data.vidstg import read_vidstg
from llava_st_hf.exports import FORMATS, export, to_supervision
from llava_st_hf.exports.cvat import task_labels
from llava_st_hf.exports.label_studio import label_config
from modeling_tests.export_answers import (
    CAPTION,
    IMAGE,
    ODD_CAPTION,
    VIDEO,
    answer,
    box_at,
    event_at,
    image_answer,
    several_events,
    two_videos,
)
from modeling_tests.media import moving_frames, write_sideways, write_video


@dataclass
class Tube:
    """What a reader finds of one event: its text and `{frame: (xmin, ymin, xmax, ymax)}`, frames counted from 0."""

    text: str
    boxes: dict[int, tuple[float, ...]] = field(default_factory=dict)


def _xyxy(x, y, width, height) -> tuple[float, ...]:
    return x, y, x + width, y + height


def read_coco(path: Path, media: MediaInfo) -> list[Tube]:
    coco = COCO(str(path))
    tubes = {track["id"]: Tube(coco.cats[track["category_id"]]["name"]) for track in coco.dataset["tracks"]}
    for found in coco.anns.values():
        tubes[found["track_id"]].boxes[coco.imgs[found["image_id"]]["frame_index"]] = _xyxy(*found["bbox"])
    return list(tubes.values())


def read_cvat(path: Path, media: MediaInfo) -> list[Tube]:
    tubes = []
    for track in ElementTree.parse(path).iter("track"):
        boxes = [box for box in track.iter("box") if box.get("outside") == "0"]
        (text,) = {box.findtext("attribute[@name='caption']") or track.get("label") for box in boxes}
        corners = {int(box.get("frame")): tuple(float(box.get(side)) for side in ("xtl", "ytl", "xbr", "ybr")) for box in boxes}
        tubes.append(Tube(text, corners))
    return tubes


def read_label_studio(path: Path, media: MediaInfo) -> list[Tube]:
    tubes = []
    for task in json.loads(path.read_text(encoding="utf-8")):
        fps = task["data"]["fps"]
        for region in task["predictions"][0]["result"]:
            if region["type"] == "videorectangle":
                tube = Tube(region["value"]["labels"][0])
                for entry in region["value"]["sequence"]:
                    percent = _xyxy(entry["x"], entry["y"], entry["width"], entry["height"])
                    corners = tuple(p * size / 100 for p, size in zip(percent, (media.width, media.height) * 2, strict=True))
                    seconds = (entry["frame"] - 1) / fps  # at which Label Studio displays the frame
                    frame = entry["frame"] - 1 if media.fps is None else media.frame_of_seconds(seconds)
                    tube.boxes[frame] = corners
                tubes.append(tube)
    return tubes


def read_fiftyone(path: Path, media: MediaInfo) -> list[Tube]:
    tubes: dict[int, Tube] = {}
    for sample in json.loads(path.read_text(encoding="utf-8"))["samples"]:
        for event in sample["events"]["detections"]:
            tubes[event["index"]] = Tube(event["label"])
        for number, frame in sample["frames"].items():
            for found in frame["boxes"]["detections"]:
                x, y, width, height = found["bounding_box"]
                corners = _xyxy(x * media.width, y * media.height, width * media.width, height * media.height)
                tubes[found["index"]].boxes[int(number) - 1] = corners
    return list(tubes.values())


def _dense_tube(sample, first: int) -> Tube:
    assert not isinstance(sample, str), sample
    return Tube(sample.text, {first + round(time * (sample.num_frames - 1)): box for time, box in sample.boxes})


def read_vidstg_file(path: Path, media: MediaInfo) -> list[Tube]:
    return [_dense_tube(sample, sample.clip[0]) for _, sample in read_vidstg(str(path), str(path.parent / "boxes"))]


def read_hc_stvg_file(path: Path, media: MediaInfo) -> list[Tube]:
    return [_dense_tube(sample, 0) for _, sample in read_hc_stvg(str(path))]


def read_table(rows: list[dict]) -> list[Tube]:
    tubes: dict[int, Tube] = {}
    for row in rows:
        if row["event"] not in ("", None):
            tube = tubes.setdefault(int(row["event"]), Tube(row["caption"]))
            if row["frame"] not in ("", None):
                tube.boxes[int(row["frame"])] = tuple(float(row[f"{side}_px"]) for side in ("xmin", "ymin", "xmax", "ymax"))
    return list(tubes.values())


def read_csv(path: Path, media: MediaInfo) -> list[Tube]:
    with open(path, encoding="utf-8", newline="") as file:
        return read_table(list(csv.DictReader(file)))


def read_parquet(path: Path, media: MediaInfo) -> list[Tube]:
    return read_table(parquet.read_table(path).to_pylist())


READERS: dict[str, Callable[[Path, MediaInfo], list[Tube]]] = {
    "coco-video": read_coco,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "fiftyone": read_fiftyone,
    "vidstg": read_vidstg_file,
    "hc-stvg": read_hc_stvg_file,
    "parquet": read_parquet,
    "csv": read_csv,
}
with_boxes = pytest.mark.parametrize("format", READERS)


def written(tmp_path: Path, format: str, *answers: Grounding) -> tuple[list[Tube], list[str]]:
    """The tubes that the reader of a format finds in an exported file, and the notes of the export."""
    path = tmp_path / f"answers{FORMATS[format].suffix}"
    notes = export(list(answers), path, format)
    return READERS[format](path, answers[0].media), notes


def assert_boxes(tube: Tube, boxes: dict[int, tuple[float, ...]]) -> None:
    """Compares boxes at the frames of the answer, and checks that frames in between, if there are any, are within these."""
    for frame, corners in boxes.items():
        assert tube.boxes[frame] == pytest.approx(corners, abs=0.02), frame
    assert min(boxes) == min(tube.boxes) and max(boxes) == max(tube.boxes)


# Files of boxes


@with_boxes
def test_export_video_answer_is_read_back_with_its_frames_and_boxes(tmp_path, format):
    (tube,), notes = written(tmp_path, format, answer(event_at((10, 20, 31))))
    assert tube.text == CAPTION and not notes
    assert_boxes(tube, {frame: (frame, 100.0, frame + 60.0, 140.0) for frame in (10, 20, 31)})


@with_boxes
def test_export_events_with_one_caption_are_separate(tmp_path, format):
    tubes, notes = written(tmp_path, format, answer(event_at((10, 20)), event_at((15, 40), top=300.0)))
    if format == "hc-stvg":  # one event per video
        assert "one event per video" in notes.pop()
        tubes.append(Tube(CAPTION, {15: (15, 300, 75, 340), 40: (40, 300, 100, 340)}))
    assert [tube.text for tube in tubes] == [CAPTION] * 2 and not notes
    assert_boxes(tubes[0], {10: (10.0, 100.0, 70.0, 140.0), 20: (20.0, 100.0, 80.0, 140.0)})
    assert_boxes(tubes[1], {15: (15.0, 300.0, 75.0, 340.0), 40: (40.0, 300.0, 100.0, 340.0)})


@with_boxes
def test_export_event_of_one_moment_has_one_frame(tmp_path, format):
    (tube,), notes = written(tmp_path, format, answer(event_at((50,))))
    assert list(tube.boxes) == [50] and not notes


@with_boxes
def test_export_boxes_outside_the_frame_are_clipped_or_left_out_and_noted(tmp_path, format):
    beyond, outside = Box(-10.0, 460.0, 50.0, 500.0, time=0.4, frame=10), Box(700.0, 10.0, 720.0, 20.0, time=0.44, frame=11)
    (tube,), notes = written(tmp_path, format, answer(Event(CAPTION, 0.4, 0.44, (beyond, outside))))
    assert tube.boxes == {10: pytest.approx((0.0, 460.0, 50.0, 480.0), abs=0.02)}
    assert any("extend beyond the frame of 640x480 pixels and were clipped" in note for note in notes)
    assert any("1 of 2 boxes have no area in the frame" in note for note in notes)


TIMES = tuple(round(0.5 + 0.05 * frame + (0.3 if frame >= 20 else 0.0), 3) for frame in range(60))
ODD_MEDIA = {
    "clip": replace(VIDEO, first_frame=20, last_frame=79),
    "late": replace(VIDEO, start_time=0.48, duration=4.48),
    "variable": MediaInfo("video", 640, 480, fps=18.2, last_frame=59, frame_times=TIMES, total_num_frames=60, duration=TIMES[-1] + 0.05),
    "length unknown": replace(VIDEO, total_num_frames=None, duration=None),
}


# Label Studio counts frames of a variable rate by time: `test_export_label_studio_counts_frames_from_1_by_time`.
@pytest.mark.parametrize("format, kind", [(f, k) for f in READERS for k in ODD_MEDIA if (f, k) != ("label-studio", "variable")])
def test_export_clip_late_start_and_variable_rate_keep_the_frames_of_the_file(tmp_path, format, kind):
    media = ODD_MEDIA[kind]
    (tube,), notes = written(tmp_path, format, answer(event_at((22, 30, 45), media=media), media=media))
    assert not notes
    assert_boxes(tube, {frame: (frame, 100.0, frame + 60.0, 140.0) for frame in (22, 30, 45)})


@with_boxes
def test_export_unknown_rate_keeps_frames_or_is_an_error(tmp_path, format):
    media = replace(VIDEO, fps=None, duration=None)
    asked = answer(Event(CAPTION, boxes=(box_at(10, 10.0, media), box_at(20, 20.0, media))), media=media)
    if format == "vidstg":
        with pytest.raises(ValueError, match=r"nothing to write.*videos/clip\.mp4 was left out: its frame rate is unknown"):
            written(tmp_path, format, asked)
        return
    (tube,), notes = written(tmp_path, format, asked)
    assert_boxes(tube, {10: (10.0, 100.0, 70.0, 140.0), 20: (20.0, 100.0, 80.0, 140.0)})
    assert [("frame rate" in note) for note in notes] == [True] * (format == "label-studio")


@with_boxes
def test_export_answer_without_events_is_an_empty_file_or_an_error(tmp_path, format):
    if format in ("vidstg", "hc-stvg"):  # files of annotated videos only
        with pytest.raises(ValueError, match="nothing to write"):
            written(tmp_path, format, answer())
        return
    assert written(tmp_path, format, answer()) == ([], [])


@with_boxes
def test_export_event_without_boxes_is_kept_or_noted(tmp_path, format):
    tubes, notes = written(tmp_path, format, answer(event_at((10, 20)), Event("no boxes", 2.0, 3.0)))
    kept = {"coco-video", "fiftyone", "parquet", "csv"}
    assert [tube.text for tube in tubes] == [CAPTION] + ["no boxes"] * (format in kept)
    assert bool(notes) == (format not in kept | {"label-studio"})  # Label Studio has its span


@with_boxes
def test_export_odd_characters_in_captions_are_read_back(tmp_path, format):
    (tube,), _ = written(tmp_path, format, answer(event_at((10, 20), ODD_CAPTION)))
    assert tube.text == (ODD_CAPTION if format in ("csv", "parquet") else " ".join(ODD_CAPTION.split()))


@with_boxes
def test_export_control_characters_are_replaced(tmp_path, format):
    (tube,), _ = written(tmp_path, format, answer(event_at((10, 20), "a\x00\x1bb")))
    assert tube.text == ("a\x00\x1bb" if format == "parquet" else "a\ufffd\ufffdb")


@with_boxes
def test_export_several_videos_are_kept_apart(tmp_path, format):
    answers = [answer(event_at((10, 20))), answer(event_at((30, 40), "elsewhere"), source="videos/more/other.mp4")]
    if format == "cvat":
        with pytest.raises(ValueError, match=r"holds one video in a file; got videos/clip\.mp4 and videos/more/other\.mp4"):
            written(tmp_path, format, *answers)
        return
    tubes, _ = written(tmp_path, format, *answers)
    assert [(tube.text, min(tube.boxes)) for tube in tubes] == [(CAPTION, 10), ("elsewhere", 30)]
    content = (tmp_path / f"answers{FORMATS[format].suffix}").read_bytes()
    assert b"clip" in content and b"other" in content


@with_boxes
def test_export_many_objects_are_all_there(tmp_path, format):
    events = [event_at((10, 20), f"object {number}", top=float(number)) for number in range(200)]
    tubes, _ = written(tmp_path, format, answer(*events))
    assert [tube.text for tube in tubes] == [f"object {number}" for number in range(1 if format == "hc-stvg" else 200)]


@pytest.mark.parametrize("format", [name for name in READERS if name not in ("csv", "parquet")])
def test_export_answer_without_source_is_an_error(tmp_path, format):
    with pytest.raises(ValueError, match=r"groundings\[1\] has no source"):
        written(tmp_path, format, answer(event_at((10, 20))), answer(event_at((10, 20)), source=None))
    assert not list(tmp_path.iterdir())


def test_export_rotated_video_has_boxes_of_the_upright_frame(tmp_path, grounder):
    upright = write_sideways(tmp_path / "phone.mp4", write_video(tmp_path / "stored.mp4", moving_frames(8, 48, 96)))
    media = Grounding.from_dict(grounder({"video": str(upright), "task": "tvg", "text": "x"}, max_new_tokens=1)).media
    assert (media.width, media.height) == (48, 96)
    event = Event(CAPTION, 0.0, 0.0, (Box(0.0, 48.0, 24.0, 96.0, time=0.0, frame=0),))
    for format in READERS:
        (tube,), notes = written(tmp_path, format, answer(event, media=media, source=str(upright)))
        assert tube.boxes == {0: pytest.approx((0.0, 48.0, 24.0, 96.0), abs=0.02)} and not notes, format


# Details of single formats


def test_export_coco_interpolated_boxes_masks_and_names(tmp_path):
    mask = np.zeros((480, 640), dtype=np.uint8, order="F")
    mask[100:110, 10:30] = 1
    counts = coco_mask.encode(mask)["counts"].decode()
    event = Event(CAPTION, 0.4, 0.48, (box_at(10, 10.0, mask=counts), box_at(12, 14.0)), score=0.5)
    export([answer(event, source="/data/a/clip.v1.mp4"), answer(source="https://x.org/b/d%20e.mp4?k=1")], tmp_path / "a.json", "coco-video")
    coco = COCO(str(tmp_path / "a.json"))
    first, between, last = coco.anns.values()
    assert [found["interpolated"] for found in (first, between, last)] == [False, True, False]
    assert between["bbox"] == [12.0, 100.0, 60.0, 40.0] and between["area"] == 2400.0
    assert coco.annToMask(first).sum() == first["area"] == 200
    assert [video["name"] for video in coco.dataset["videos"]] == ["data/a/clip.v1.mp4", "x.org/b/d e.mp4"]
    assert coco.imgs[2]["file_name"] == "data/a/clip.v1/000011.jpg" and coco.imgs[2]["time"] == 0.44
    (track,) = coco.dataset["tracks"]
    assert (track["start"], track["end"], track["score"]) == (0.4, 0.48, 0.5)


def test_export_file_names_are_relative_to_the_common_folder(tmp_path):
    def names(*sources):
        export([answer(source=source) for source in sources], tmp_path / "a.json", "coco-video")
        return [video["name"] for video in json.loads((tmp_path / "a.json").read_text())["videos"]]

    assert names("/data/a/clip.mp4") == ["clip.mp4"] and names("https://x.org/clip.mp4") == ["clip.mp4"]
    assert names("/data/a/clip.mp4", "/data/b/clip.mp4") == ["a/clip.mp4", "b/clip.mp4"]
    assert names("clip.mp4", "more/clip.mp4") == ["clip.mp4", "more/clip.mp4"]


def test_export_cvat_track_ends_after_its_last_box(tmp_path):
    path = tmp_path / "a.xml"
    long = "x" * 100
    notes = export(answer(event_at((10, 20), long, score=0.75), event_at((90, 99))), path)
    root = ElementTree.parse(path).getroot()
    assert root.findtext("version") == "1.1" and root.findtext("meta/task/mode") == "interpolation"
    assert root.findtext("meta/task/size") == "100" and root.findtext("meta/task/original_size/width") == "640"
    first, second = root.iter("track")
    shapes = [[(int(box.get("frame")), box.get("outside"), box.get("keyframe")) for box in track] for track in (first, second)]
    assert shapes == [[(10, "0", "1"), (20, "0", "1"), (21, "1", "1")], [(90, "0", "1"), (99, "0", "1")]]  # 99 is the last frame
    assert first.get("label") == "x" * 63 + "…" and first.find("box/attribute[@name='caption']").text == long
    assert first.find("box/attribute[@name='score']").text == "0.7500" and not notes
    labels = [label.findtext("name") for label in root.iter("label")]
    assert labels == [first.get("label"), CAPTION]
    assert [label["name"] for label in task_labels(answer(event_at((1,), long)))] == labels[:1]


def test_export_label_studio_counts_frames_from_1_by_time(tmp_path):
    media = ODD_MEDIA["variable"]
    export(answer(event_at((10, 19, 20), media=media, score=0.75, span_score=0.5), media=media), tmp_path / "a.json", "label-studio")
    (task,) = json.loads((tmp_path / "a.json").read_text())
    assert task["data"] == {"video": "/data/local-files/?d=videos/clip.mp4", "fps": 18.2}
    export(answer(source="https://x.org/a.mp4?k=1"), tmp_path / "b.json", "label-studio")
    assert json.loads((tmp_path / "b.json").read_text())[0]["data"]["video"] == "https://x.org/a.mp4?k=1"
    tube, span = task["predictions"][0]["result"]
    value = tube["value"]
    times = [media.seconds_of_frame(frame) for frame in (10, 19, 20)]
    assert [entry["frame"] for entry in value["sequence"]] == [1 + round(seconds * 18.2) for seconds in times]
    assert [entry["time"] for entry in value["sequence"]] == pytest.approx(times, abs=0.5 / 18.2)
    assert [entry["enabled"] for entry in value["sequence"]] == [True, True, False]
    assert value["duration"] == pytest.approx(3.8) and value["framesCount"] == round(3.8 * 18.2)
    start, end = (1 + round(times[index] * 18.2) for index in (0, 2))
    assert span["value"] == {"ranges": [{"start": start, "end": end}], "timelinelabels": [CAPTION]}
    assert (tube["score"], span["score"], task["predictions"][0]["score"]) == (0.75, 0.5, 0.75)


def test_label_config_has_the_tags_and_labels_of_the_results(tmp_path):
    for found in (several_events(), image_answer()):
        config = ElementTree.fromstring(label_config(found))
        names = {tag.get("name") for tag in config}
        export(found, tmp_path / "a.json", "label-studio")
        (task,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
        for region in task["predictions"][0]["result"]:
            assert {region["from_name"], region["to_name"]} <= names
            (label,) = region["value"].get("labels") or region["value"].get("timelinelabels") or region["value"]["rectanglelabels"]
            assert label in {tag.get("value") for tag in config.iter("Label")}
        assert next(iter(config)).get("value") in {f"${name}" for name in task["data"]}


def test_export_fiftyone_supports_and_paths(tmp_path):
    notes = export([several_events(), answer(source="https://x.org/a.mp4")], tmp_path / "a.json", "fiftyone")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    local, remote = content["samples"]
    assert local["filepath"] == str(Path("videos/clip.mp4").absolute()) and remote["filepath"] == "https://x.org/a.mp4"
    assert any("https://x.org/a.mp4 is a URL" in note for note in notes)
    supports = [event["support"] for event in local["events"]["detections"]]
    assert supports == [[11, 31], [21, 41], [51, 51], [61, 100], [11, 21], [51, 76]]
    flags = [frame["boxes"]["detections"][0]["interpolated"] for frame in local["frames"].values()]
    assert flags.count(False) == 7 and local["events"]["detections"][0]["confidence"] == 0.5


def test_export_vidstg_question_marks_make_questions(tmp_path):
    (tmp_path / "in").mkdir()
    export(answer(event_at((10, 20), "who runs?"), event_at((30, 40))), tmp_path / "in" / "a.json", "vidstg")
    samples = [sample for _, sample in read_vidstg(str(tmp_path / "in" / "a.json"), str(tmp_path / "in" / "boxes"))]
    assert [(sample.text, sample.is_question, sample.path) for sample in samples] == [
        ("who runs?", True, "videos/clip.mp4"),
        (CAPTION, False, "videos/clip.mp4"),
    ]


def test_export_vidstg_same_file_name_twice_is_an_error(tmp_path):
    answers = [answer(event_at((1, 2)), source=source) for source in ("a/x.mp4", "b/x.mp4")]
    with pytest.raises(ValueError, match=r"'x' for both a/x\.mp4 and b/x\.mp4"):
        export(answers, tmp_path / "a.json", "vidstg")


def test_export_hc_stvg_event_with_a_gap_is_left_out(tmp_path):
    boxes = (box_at(10, 10.0), box_at(11, 700.0), box_at(12, 12.0))
    with pytest.raises(ValueError, match="its object leaves the frame in between"):
        export(answer(Event(CAPTION, 0.4, 0.48, boxes)), tmp_path / "a.json", "hc-stvg")


def test_export_csv_formulas_begin_with_an_apostrophe(tmp_path):
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"]
    notes = export(answer(*[event_at((1, 2), text) for text in formulas], source="-x.mp4"), tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows[::2]] == [f"'{text}" for text in formulas]
    assert {row["source"] for row in rows} == {"'-x.mp4"} and notes[0].startswith("20 cells")


def test_export_parquet_has_types_and_a_row_for_an_answer_without_events(tmp_path):
    export([several_events(query="=q", task="stvg"), answer()], tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert {str(table.schema.field(name).type) for name in ("frame", "event", "width_px")} == {"int64"}
    assert str(table.schema.field("time_s").type) == "double" and str(table.schema.field("interpolated").type) == "bool"
    rows = table.to_pylist()
    assert len(rows) == 3 + 2 + 1 + 2 + 2 + 1 + 1
    assert rows[0]["query"] == "=q" and rows[0]["event_score"] == 0.75 and rows[0]["time_s"] == 0.4
    assert rows[-2]["caption"] == "no boxes" and rows[-2]["frame"] is None and rows[-2]["start_s"] == 2.0
    assert rows[-1]["answer"] == 2 and rows[-1]["event"] is None


# Subtitles


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def cues(path: Path) -> list[tuple[float, float, str]]:
    if path.suffix == ".vtt":
        return [(_seconds(cue.start), _seconds(cue.end), cue.text) for cue in webvtt.read(str(path))]
    return [(cue.start.total_seconds(), cue.end.total_seconds(), cue.content) for cue in srt.parse(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("suffix", [".vtt", ".srt"])
def test_export_subtitles_are_read_back_in_the_order_of_time(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    events = [
        Event("second", 3723.0405, 3724.0),
        Event("moment", 5000.0, 5000.0),
        Event("first\n\n1\n00:00:00.000 --> 00:00:01.000", 0.0, 0.5),
    ]
    notes = export([answer(*events[:2]), answer(events[2])], path)
    first, second, moment = cues(path)
    assert second[:2] == (3723.04, 3724.0) and moment[:2] == (5000.0, 5000.04)  # the duration of a frame
    assert first[:2] == (0.0, 0.5) and "\n" not in first[2] and first[2].startswith("first 1 00:00:00.000 --")
    assert any("has no length: its cue lasts 0.040 s" in note for note in notes)


def test_export_webvtt_escapes_markup(tmp_path):
    export(answer(event_at((1, 5), ODD_CAPTION)), tmp_path / "a.vtt")
    line = (tmp_path / "a.vtt").read_text(encoding="utf-8").splitlines()[4]
    assert line == 'Ein "Äffchen" &lt;b&gt;&amp; 猴子&lt;/b&gt; --&gt; rennt, {\\an8} ]]&gt; 🐒'


def test_export_srt_replaces_markup_and_notes_it(tmp_path):
    notes = export(answer(event_at((1, 5), ODD_CAPTION)), tmp_path / "a.srt")
    assert cues(tmp_path / "a.srt")[0][2] == 'Ein "Äffchen" ‹b›& 猴子‹/b› --› rennt, { \\an8} ]]› 🐒'
    assert any("players read as markup" in note for note in notes) and any("no place for boxes" in note for note in notes)


@pytest.mark.parametrize("format", ["webvtt", "srt"])
def test_export_subtitles_without_times_are_an_error(tmp_path, format):
    unknown = answer(Event(CAPTION), media=replace(VIDEO, fps=None), source=None)
    with pytest.raises(ValueError, match=r"no spans for subtitles: Event 1 .* the frame rate of the video is unknown"):
        export(unknown, tmp_path / "a", format)
    with pytest.raises(ValueError, match="holds one video"):
        export(two_videos(), tmp_path / "a", format)
    assert export(answer(source=None), tmp_path / "a", format) == []
    assert cues((tmp_path / "a").rename(tmp_path / f"a{FORMATS[format].suffix}")) == []


# Images


def test_export_image_answers_are_read_back(tmp_path):
    found = [image_answer(), answer(media=IMAGE, source="images/empty.png")]
    expected = [(10.0, 20.0, 110.0, 70.0), (250.0, 150.0, 300.0, 190.0), (0.0, 0.0, 20.0, 20.0)]
    caption = " ".join(ODD_CAPTION.split())
    results = {}
    for format in ("coco-video", "cvat", "label-studio", "fiftyone", "parquet"):
        notes = export(found, tmp_path / format, format)
        assert any("Event 2 ('a cat'): 1 of 1 boxes extend beyond the image of 300x200 pixels" in note for note in notes)
    coco = COCO(str(tmp_path / "coco-video"))
    results["coco"] = [(coco.cats[a["category_id"]]["name"], _xyxy(*a["bbox"]), a.get("score")) for a in coco.anns.values()]
    assert [image["file_name"] for image in coco.imgs.values()] == ["a photo.png", "empty.png"] and "video_id" not in coco.anns[1]
    images = list(ElementTree.parse(tmp_path / "cvat").iter("image"))
    assert [image.get("name") for image in images] == ["a photo.png", "empty.png"] and not list(images[1])
    sides = ("xtl", "ytl", "xbr", "ybr")
    scores = [0.9, 0.4, None]
    texts = [box.find("attribute[@name='caption']").text for box in images[0]]
    results["cvat"] = list(zip(texts, [tuple(float(box.get(side)) for side in sides) for box in images[0]], scores, strict=True))
    task, empty = json.loads((tmp_path / "label-studio").read_text(encoding="utf-8"))
    assert task["data"] == {"image": "/data/local-files/?d=images/a%20photo.png"} and empty["predictions"][0]["result"] == []
    results["label-studio"] = []
    for region, score in zip(task["predictions"][0]["result"], scores, strict=True):
        assert region["type"] == "rectanglelabels" and (region["original_width"], region["original_height"]) == (300, 200)
        value = region["value"]
        x, y, width, height = value["x"] * 3, value["y"] * 2, value["width"] * 3, value["height"] * 2
        results["label-studio"].append((value["rectanglelabels"][0], _xyxy(x, y, width, height), score))
    sample, _ = json.loads((tmp_path / "fiftyone").read_text(encoding="utf-8"))["samples"]
    results["fiftyone"] = []
    for detection in sample["boxes"]["detections"]:
        x, y, width, height = detection["bounding_box"]
        results["fiftyone"].append((detection["label"], _xyxy(x * 300, y * 200, width * 300, height * 200), detection["confidence"]))
    for format, boxes in results.items():
        assert [text for text, _, _ in boxes] == [caption, "a cat", "a cat"], format
        assert np.allclose([box for _, box, _ in boxes], expected, atol=0.02), format
        assert [score for _, _, score in boxes] == scores, format


@pytest.mark.parametrize("format", ["vidstg", "hc-stvg", "webvtt", "srt"])
def test_export_images_to_a_format_for_videos_are_an_error(tmp_path, format):
    with pytest.raises(ValueError, match=rf"The format '{format}' is for videos"):
        export(image_answer(), tmp_path / "a", format)


@pytest.mark.parametrize("format", ["cvat", "label-studio", "fiftyone", "webvtt"])
def test_export_images_and_videos_in_one_file_are_an_error(tmp_path, format):
    with pytest.raises(ValueError, match="holds images or videos in one file, not both"):
        export([image_answer(), several_events()], tmp_path / "a", format)


# supervision


def test_to_supervision_has_tracks_times_and_captions_per_frame():
    frames = to_supervision(several_events(query="q"))
    assert list(frames) == sorted({*range(10, 41), 50, *range(60, 100)})
    both = frames[20]
    assert both.tracker_id.tolist() == [1, 2, 5] and both.class_id.tolist() == [0, 0, 3]
    assert both.xyxy[0].tolist() == [20.0, 100.0, 80.0, 140.0] and both.xyxy[2].tolist() == [600.0, 0.0, 640.0, 50.0]
    assert both.data["time"].tolist() == [0.8] * 3 and both.data["caption"].tolist() == [CAPTION, CAPTION, "wide"]
    assert both.confidence is None and both.data["interpolated"].tolist() == [False] * 3
    assert frames[21].data["interpolated"].tolist() == [True, True]
    assert both[both.tracker_id == 2].xyxy.tolist() == [[20.0, 300.0, 80.0, 340.0]]


def test_to_supervision_image_follows_the_conventions_of_vision_language_models():
    import supervision

    found = to_supervision(image_answer().to_dict())
    reference = supervision.Detections.from_vlm(
        supervision.VLM.PALIGEMMA, "<loc0000><loc0000><loc0512><loc0512> cat", resolution_wh=(300, 200)
    )
    assert set(reference.data) <= set(found.data) and reference.tracker_id is found.tracker_id is None
    assert found.data["class_name"].tolist()[1:] == ["a cat", "a cat"] and found.class_id.tolist() == [0, 1, 1]
    assert found.confidence[:2].tolist() == [0.9, 0.4] and np.isnan(found.confidence[2])
    assert len(to_supervision(answer(media=IMAGE))) == 0 and to_supervision(answer()) == {}


def test_to_supervision_decodes_masks():
    mask = np.zeros((480, 640), dtype=np.uint8, order="F")
    mask[100:110, 10:30] = 1
    box = box_at(10, 10.0, mask=coco_mask.encode(mask)["counts"].decode())
    found = to_supervision(answer(Event(CAPTION, 0.4, 0.4, (box,))))
    assert np.array_equal(found[10].mask, mask[None].astype(bool))


# The function


def test_export_guesses_the_format_from_the_suffix_where_one_has_it(tmp_path):
    llava_st_hf.export(several_events(), tmp_path / "a.VTT")
    assert (tmp_path / "a.VTT").read_text(encoding="utf-8").startswith("WEBVTT")
    with pytest.raises(ValueError, match="give format, one of coco-video, label-studio, fiftyone, vidstg, hc-stvg"):
        export(several_events(), tmp_path / "a.json")
    with pytest.raises(ValueError, match="format='coco' is not a format; it must be one of coco-video, cvat"):
        export(several_events(), tmp_path / "a.json", "coco")


def test_export_invalid_answers_are_errors_that_name_them(tmp_path):
    for groundings, message in [
        ([], "groundings is empty"),
        ([several_events(), {"text": "", "events": [], "media": None}], r"groundings\[1\] has no media"),
        ([{"text": "", "events": [{"start": "x", "boxes": []}], "media": None}], r"groundings\[0\]: events\[0\]: start must be"),
        ([several_events(), several_events(media=replace(VIDEO, width=320))], r"groundings\[1\]: videos/clip.mp4 is a video of 320x480"),
    ]:
        with pytest.raises(ValueError, match=message):
            export(groundings, tmp_path / "a.json", "coco-video")


def test_export_missing_library_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"The format 'parquet' needs pyarrow: pip install 'llava-st-hf\[export\]'\."):
        export(several_events(), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="to_supervision needs supervision"):
        to_supervision(several_events())


def test_export_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"missing"):
        export(several_events(), tmp_path / "missing" / "a.csv")


@pytest.mark.parametrize("format", FORMATS)
def test_export_scores_and_masks_without_a_place_are_noted(tmp_path, format):
    event = Event(CAPTION, 0.4, 0.8, (box_at(10, 10.0, score=0.5, mask="0"), box_at(20, 20.0)), score=0.5, presence=0.25)
    without_scores, without_masks = {"vidstg", "hc-stvg", "webvtt", "srt"}, {"cvat", "label-studio", "fiftyone", "vidstg", "hc-stvg"}
    if format == "coco-video":
        return
    written = tmp_path / "a"
    notes = " ".join(export(answer(event), tmp_path / "a", format))
    assert ("scores" in notes) == (format in without_scores | {"label-studio"})
    assert ("masks" in notes) == (format in without_masks)
    assert ("presence" in notes) == (format not in {"csv", "parquet", "fiftyone"})
    if format in {"csv", "parquet", "fiftyone"}:
        assert b"presence" in written.read_bytes()


@pytest.mark.parametrize("format", ["coco-video", "hc-stvg", "label-studio"])
def test_export_urls_that_differ_in_their_query_only_are_an_error(tmp_path, format):
    event = Event(CAPTION, 0.4, 0.8, (box_at(10, 10.0), box_at(20, 20.0)))
    answers = [replace(answer(event), source=f"http://host/clip.mp4?v={number}") for number in (1, 2)]
    with pytest.raises(ValueError, match="have the same name in the file"):
        export(answers, tmp_path / "a", format)


def test_export_data_url_as_source_is_an_error(tmp_path):
    event = Event(CAPTION, 0.4, 0.8, (box_at(10, 10.0), box_at(20, 20.0)))
    with pytest.raises(ValueError, match=r"groundings\[0\] has a data: URL as its source"):
        export(replace(answer(event), source="data:video/mp4;base64,AAAA"), tmp_path / "a", "fiftyone")


def test_group_of_a_url_that_ends_with_two_dots_stays_in_the_folder_of_boxes():
    from llava_st_hf.exports.vidstg import _group

    assert _group("http://host/a/../clip.mp4") == "videos"


def test_export_into_a_missing_folder_raises_with_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing/a\.csv cannot be written: the folder .*missing does not exist"):
        export(answer(event_at((10, 20))), tmp_path / "missing" / "a.csv")
