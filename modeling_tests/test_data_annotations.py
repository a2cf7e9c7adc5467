# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from llava_st_hf.data.charades_sta import read_charades_sta
from llava_st_hf.data.hc_stvg import read_hc_stvg
from llava_st_hf.data.json_rows import BrokenFileError
from llava_st_hf.data.refcoco import read_refcoco
from llava_st_hf.data.vidstg import boxes_digest, read_vidstg


def written(path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)


# RefCOCO


IMAGE = {"file_name": "a.jpg", "height": 48, "width": 64, "caption": "the left dog", "id": 5}
ANNOTATION = {"id": 5, "bbox": [10.5, 4, 20, 30.25]}


def refcoco(tmp_path, images, annotations) -> list:
    return list(read_refcoco(written(tmp_path / "refcoco.json", {"info": {}, "images": images, "annotations": annotations})))


def test_read_refcoco_pairs_images_and_annotations_by_position(tmp_path):
    ((row, sample),) = refcoco(tmp_path, [IMAGE], [ANNOTATION])
    assert row == 1 and (sample.id, sample.kind, sample.path, sample.text) == ("5", "image", "a.jpg", "the left dog")
    assert sample.boxes == ((None, (10.5, 4.0, 30.5, 34.25)),) and (sample.width, sample.height) == (64, 48)


@pytest.mark.parametrize(
    "image, annotation, reason",
    [
        ({}, {"id": 6}, "id 5, the annotation at the same position the id 6"),
        ({}, {"bbox": [1, 2, 3]}, "'bbox[3]' is missing."),
        ({}, {"bbox": [1, 2, 0, 3]}, "above 0"),
        ({}, {"bbox": [1, 2, "3", 3]}, "finite number"),
        ({}, {"bbox": [60, 2, 20, 3]}, "outside the image of 64x48"),
        ({}, {"bbox": None}, "'bbox' must be a list, not None."),
        ({"caption": ""}, {}, "not blank"),
        ({"width": 64.5}, {}, "'width' must be an integer"),
        ({"file_name": None}, {}, "'file_name' must be a string"),
    ],
)
def test_read_refcoco_invalid_pair_gives_an_error_for_its_row_only(tmp_path, image, annotation, reason):
    rows = refcoco(tmp_path, [IMAGE, {**IMAGE, **image}], [ANNOTATION, {**ANNOTATION, **annotation}])
    assert not isinstance(rows[0][1], str)
    assert rows[1][0] == 2 and reason in rows[1][1]


def test_read_refcoco_lists_of_unequal_length_give_an_error(tmp_path):
    rows = refcoco(tmp_path, [IMAGE, IMAGE], [ANNOTATION])
    assert "'annotations' has no item at this position" in rows[1][1]


# Charades-STA


def test_read_charades_sta_gives_times_as_fractions_and_adds_the_video_suffix(tmp_path):
    rows = [
        {"image_id": "3MSZA", "caption": "a person sits", "timestamp": [0.25, 1.0004]},
        {"image_id": "AO8RW.avi", "caption": "a person runs", "timestamp": [0, 0.5]},
    ]
    (_, first), (_, second) = read_charades_sta(written(tmp_path / "charades.json", rows))
    assert (first.path, first.span, first.unit, first.id) == ("3MSZA.mp4", (0.25, 1.0), "fraction", "3MSZA-1")
    assert second.path == "AO8RW.avi"


@pytest.mark.parametrize(
    "timestamp, reason",
    [([0.5, 0.2], "before the start"), ([0, 1.5], "1.5"), ([0.1], "'timestamp[1]' is missing"), (None, "'timestamp' must be a list")],
)
def test_read_charades_sta_invalid_timestamp_gives_an_error(tmp_path, timestamp, reason):
    ((_, problem),) = read_charades_sta(written(tmp_path / "charades.json", [{"image_id": "a", "caption": "b", "timestamp": timestamp}]))
    assert reason in problem


# HC-STVG


PERSON = {"bbox": [[10, 4, 20, 30], [11, 4, 20, 50]], "st_frame": 3, "img_num": 11, "st_time": 0.1, "ed_time": 0.2}
VERSION_1 = {**PERSON, "caption": "The man turns.", "width": 64, "height": 48}
VERSION_2 = {**PERSON, "English": "The man turns.", "Chinese": "…", "img_size": [48, 64]}


@pytest.mark.parametrize("annotation", [VERSION_1, VERSION_2])
def test_read_hc_stvg_converts_1_based_frames_and_clips_boxes_to_the_frame(tmp_path, annotation):
    ((row, sample),) = read_hc_stvg(written(tmp_path / "hc.json", {"5_a.mp4": annotation}))
    assert row == 1 and (sample.id, sample.path, sample.text) == ("5_a.mp4", "5_a.mp4", "The man turns.")
    assert sample.span == (0.2, 0.3) and sample.unit == "fraction" and sample.num_frames == 11
    assert sample.boxes == ((0.2, (10.0, 4.0, 30.0, 34.0)), (0.3, (11.0, 4.0, 31.0, 48.0)))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"bbox": []}, "'bbox' must not be empty."),
        ({"st_frame": 11}, "11 frames"),
        ({"st_frame": 0}, "'st_frame'"),
        ({"bbox": [[10, 4, 20, 30], [70, 4, 20, 30]]}, "The box of frame 4"),
        ({"caption": None}, "'caption' (or 'English', in version 2) is missing"),
        ({"width": None}, "'width' and 'height' (or 'img_size', in version 2) are missing"),
    ],
)
def test_read_hc_stvg_invalid_video_gives_an_error_for_it_only(tmp_path, change, reason):
    rows = list(read_hc_stvg(written(tmp_path / "hc.json", {"a.mp4": {**VERSION_1, **change}, "b.mp4": VERSION_1})))
    assert reason in rows[0][1] and not isinstance(rows[1][1], str)


# VidSTG


SENTENCES = {
    "vid": "8",
    "frame_count": 12,
    "fps": 25,
    "width": 64,
    "height": 48,
    "used_segment": {"begin_fid": 1, "end_fid": 11},
    "temporal_gt": {"begin_fid": 3, "end_fid": 7},
    "captions": [{"description": "a dog runs.", "target_id": 0}],
    "questions": [{"description": "what runs?", "target_id": 1}],
}


def vidor(tmp_path, missing=()):
    def thing(tid, x):
        return {"tid": tid, "bbox": {"xmin": x, "ymin": 2, "xmax": x + 10, "ymax": 20}, "generated": 0, "tracker": "none"}

    frames = [[thing(0, frame)] + ([] if frame in missing else [thing(1, 30)]) for frame in range(12)]
    (tmp_path / "boxes" / "1000").mkdir(parents=True)
    written(tmp_path / "boxes" / "1000" / "8.json", {"video_id": "8", "trajectories": frames})
    return str(tmp_path / "boxes")


def vidstg(tmp_path, **changes) -> list:
    boxes = vidor(tmp_path, changes.pop("missing", ()))
    return list(read_vidstg(written(tmp_path / "vidstg.json", [{**SENTENCES, **changes}]), boxes))


def test_read_vidstg_gives_one_sample_per_sentence(tmp_path):
    (_, caption), (_, question) = vidstg(tmp_path, missing=(4,))
    assert caption.path == question.path == "1000/8.mp4" and caption.id != question.id
    assert caption.clip == (1, 11) and caption.span == (0.2, 0.5) and caption.num_frames == 11  # frames 3 to 6 of the clip from 1 to 11
    assert [time for time, _ in caption.boxes] == [0.2, 0.3, 0.4, 0.5] and caption.boxes[0][1] == (3.0, 2.0, 13.0, 20.0)
    assert [time for time, _ in question.boxes] == [0.2, 0.4, 0.5] and question.is_question and not caption.is_question


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"vid": "9"}, "no <group>/9.json"),
        ({"temporal_gt": {"begin_fid": 0, "end_fid": 7}}, "not within 'used_segment'"),
        ({"temporal_gt": {"begin_fid": 7, "end_fid": 7}}, "not within 'used_segment'"),
        ({"temporal_gt": {"begin_fid": 3, "end_fid": 13}}, "not within 'used_segment'"),
        ({"captions": [{"description": "x", "target_id": 4}]}, "target 4 has no boxes"),
        ({"captions": [], "questions": []}, "'captions' and 'questions' are both empty or missing"),
        ({"fps": None}, "'fps' must be a finite number, not None."),
    ],
)
def test_read_vidstg_invalid_row_gives_an_error(tmp_path, change, reason):
    row, problem = vidstg(tmp_path, **change)[0]
    assert row == 1 and reason in problem


def test_boxes_digest_changes_with_the_files(tmp_path):
    folder = vidor(tmp_path)
    before = boxes_digest(folder)
    assert before == boxes_digest(folder)
    (tmp_path / "boxes" / "1000" / "8.json").write_text("{}")
    assert before != boxes_digest(folder)


@pytest.mark.parametrize("read", [read_refcoco, read_hc_stvg])
def test_read_truncated_json_file_raises_with_file_and_row(tmp_path, read):
    path = tmp_path / "cut.json"
    path.write_text('{"images": [')
    with pytest.raises(BrokenFileError, match=r"cut\.json, row 1"):
        list(read(str(path)))
