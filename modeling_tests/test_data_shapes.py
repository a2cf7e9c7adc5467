# SPDX-License-Identifier: Apache-2.0
"""Shapes dataset: it is reproducible from the seed, the frames match the ground truth, and the samples are valid training data."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from llava_st_hf.data import load_mixture, validate_mixture
from llava_st_hf.model.messages_llava_st import box_text
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.model.video_processing_llava_st import LlavaSTVideoProcessor
from llava_st_hf.shapes import files as shapes_files
from llava_st_hf.shapes.files import PHASES, make_rows, write_questions, write_training_data, write_video
from llava_st_hf.shapes.questions import attributes, happening, image_rows, reference, references, tubelet, video_rows
from llava_st_hf.shapes.scenes import COLOURS, KINDS, Event, Painter, Scene, Thing, make_scene, scene_seed
from llava_st_hf.shapes.slow_events import event_clip


VIDEOS = [make_scene(scene_seed("train", number), is_video=True) for number in range(60)]
IMAGES = [make_scene(scene_seed("train", number), is_video=False) for number in range(60)]


def still(*things: Thing, **changes) -> Scene:
    """Returns a scene of 100×80 pixels and 4 seconds without events."""
    return replace(Scene(100, 80, 10, 41, things, (), (0.0, 0.0), 7), **changes)


def test_make_scene_same_seed_gives_the_same_scene_and_frame():
    seed = scene_seed("train", 3)
    assert make_scene(seed, True) == make_scene(seed, True)
    first, second = (Painter(make_scene(seed, True)).frame(0) for _ in range(2))
    assert np.array_equal(first, second)
    assert make_scene(seed, True) != make_scene(scene_seed("train", 4), True)


def test_scene_seed_differs_between_splits():
    seeds = [scene_seed(split, number) for split in ("train", "validation", "test") for number in range(3000)]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ValueError, match="split='dev' must be one of train, validation, test"):
        scene_seed("dev", 0)


def test_make_scene_objects_differ_in_attributes_and_often_share_one():
    sharing = 0
    for scene in VIDEOS + IMAGES:
        names = [(thing.shape, thing.colour, thing.size) for thing in scene.things]
        assert len(set(names)) == len(names)
        sharing += any(a != b and (a[0] == b[0] or a[1] == b[1]) for a in names for b in names)
    assert sharing > 0.7 * len(VIDEOS + IMAGES)


def test_reference_matches_exactly_one_object():
    rng = np.random.default_rng(0)
    for scene in VIDEOS:
        for number in range(len(scene.things)):
            words = set(reference(scene, number, rng).split()) - {"the", "object"}
            fitting = [thing for thing in scene.things if words <= {thing.shape, thing.colour, thing.size}]
            assert fitting == [scene.things[number]]


def test_make_scene_objects_stay_in_the_image_and_events_within_the_clip():
    for scene in VIDEOS:
        for event in scene.events:
            assert 0 < event.start < event.end < scene.duration
        for time in np.linspace(0, scene.duration, 40):
            for number in range(len(scene.things)):
                state = scene.state(number, time)
                x1, y1, x2, y2 = state.box  # the box as drawn; an edge may exceed the image while an object shakes or the camera moves
                assert min(x1, y1, scene.width - x2, scene.height - y2) > -0.1 * min(scene.width, scene.height)
                if (box := scene.box(number, time)) is not None:
                    assert 0 <= box[0] < box[2] <= scene.width and 0 <= box[1] < box[3] <= scene.height


def test_scene_box_exists_during_an_event_except_disappears():
    for scene in VIDEOS:
        for event in scene.events:
            for time in np.linspace(event.start, event.end, 9):
                assert (scene.box(event.thing, time) is None) == (event.kind == "disappears")


def test_make_scene_produces_every_kind_of_event():
    scenes = VIDEOS + [make_scene(scene_seed("train", number), True) for number in range(100, 250)]
    assert {event.kind for scene in scenes for event in scene.events} == set(KINDS)


@pytest.mark.parametrize(
    ("event", "time", "expected"),
    [
        (Event(0, "moves right", 1, 3, dx=40), 2, ((30, 30, 50, 50), "red")),
        (Event(0, "moves up", 1, 3, dy=-10), 4, ((10, 20, 30, 40), "red")),
        (Event(0, "grows", 1, 3), 3, ((2.5, 22.5, 37.5, 57.5), "red")),
        (Event(0, "shakes", 1, 3, dx=8, shake=1.0), 1.25, ((18, 30, 38, 50), "red")),
        (Event(0, "turns", 1, 3, colour="blue"), 2, ((10, 30, 30, 50), "blue")),
        (Event(0, "turns", 1, 3, colour="blue"), 3.5, ((10, 30, 30, 50), "red")),
        (Event(0, "appears", 1, 3), 0.9, None),
        (Event(0, "disappears", 1, 3), 2, None),
    ],
)
def test_scene_state_changes_as_the_event_defines(event, time, expected):
    scene = still(Thing("circle", "red", "small", 20, 40, 20), events=(event,))
    box = scene.box(0, time)
    assert (box and tuple(np.round(box, 6)), scene.state(0, time).colour) == (expected or (None, "red"))


def test_painter_draws_a_tail_behind_moving_and_on_both_sides_of_shaking_objects():
    scene = still(Thing("square", "white", "small", 60, 40, 16), events=(Event(0, "moves right", 1, 3, dx=20),))
    before, now, after = (scene.state(0, time) for time in (0.5, 2, 3.5))
    assert now.moves == (1.0, 0.0) and now.deed == "moves right" and all(x < now.x and y == now.y for x, y, _ in now.tail)
    assert before.tail == after.tail == () and before.deed == after.deed == "" and before.moves == after.moves == (0.0, 0.0)
    painter = Painter(scene)
    change = painter.frame(20).astype(int) - painter.frame(40)  # the object covers x = 62 … 78 at 2 s, and 72 … 88 at the end
    assert change[36:44, 57:61].mean() > 10 > abs(change[36:44, 90:94]).mean()
    shaking = still(Thing("square", "white", "small", 60, 40, 16), events=(Event(0, "shakes", 1, 3, dx=9),)).state(0, 2)
    assert shaking.deed == "shakes" and [x for x, _, _ in shaking.tail] == [51, 69]


@pytest.mark.parametrize(
    ("event", "place", "colour"),  # a pixel (x, y) and its expected colour at 2 s
    [
        (Event(0, "grows", 1, 3), (59, 40), "halfway"),  # the object extends 13.75 pixels to each side, and its paler copy 17.9
        (Event(0, "appears", 1, 3), (51, 40), "dark"),
        (Event(0, "disappears", 1, 3), (48, 40), "white"),  # its outline, one pixel to each side of 49
        (Event(0, "turns", 1, 3, colour="blue"), (40, 40), "white"),
        (Event(0, "turns", 1, 3, colour="blue"), (47, 40), "blue"),
        (Event(1, "hits", 1, 3, dx=-10, other=0), (51, 40), "red"),
    ],
)
def test_painter_single_frame_shows_the_event(event, place, colour):
    things = (Thing("square", "white", "small", 40, 40, 20), Thing("circle", "red", "small", 90, 40, 10))
    scene = still(*things, events=(event,))
    x, y = place
    now, before = (Painter(scene).frame(number).astype(int)[y, x] for number in (20, 0))
    if colour == "dark":
        assert now.max() < 60
    elif colour == "halfway":
        assert (now > before + 20).all() and now.min() < 225
    else:
        assert np.abs(now - COLOURS[colour]).max() < 60


def test_scene_state_after_the_event_has_no_event_cues():
    for kind in ("grows", "turns", "shakes"):
        scene = still(Thing("square", "white", "small", 40, 40, 20), events=(Event(0, kind, 1, 2, dx=6, colour="blue"),))
        state = scene.state(0, 3)
        assert (state.deed, state.tail, state.colour) == ("", (), "white")


def test_painter_tail_outside_the_image_is_not_drawn():
    scene = still(Thing("square", "white", "small", 9, 40, 16), events=(Event(0, "moves right", 0.001, 1, dx=80),))
    frame = Painter(scene).frame(1).astype(int)
    assert frame[:, 60:].max() < 200


def test_scene_hits_event_ends_where_the_objects_touch():
    hits = [(scene, event) for number in range(150) for scene in [make_scene(scene_seed("train", number), True)] for event in scene.events]
    hits = [(scene, event) for scene, event in hits if event.kind == "hits"]
    assert len(hits) > 5
    for scene, event in hits:
        mine, other = scene.state(event.thing, event.end), scene.state(event.other, event.end)
        gap = max(abs(mine.x - other.x), abs(mine.y - other.y)) - (mine.side + other.side) / 2
        assert abs(gap) < 1e-6


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "cross"])
def test_painter_object_has_its_colour_and_fills_its_box(shape):
    scene = still(Thing(shape, "yellow", "large", 50, 40, 30), num_frames=1)
    frame = Painter(scene).frame(0).astype(int)
    yellow = np.abs(frame - COLOURS["yellow"]).max(-1) < 60
    rows, columns = np.nonzero(yellow)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(found - [35, 25, 65, 55]).max() <= 2
    assert yellow.sum() > 0.4 * 30 * 30


def test_painter_camera_drift_moves_background_and_objects_equally():
    scene = still(Thing("square", "white", "small", 30, 30, 16), drift=(12.0, -6.0))
    assert scene.box(0, scene.duration) == (34, 16, 50, 32)
    first, last = (Painter(replace(scene, seed=3)).frame(number).astype(int) for number in (0, 40))
    assert np.abs(first[20:60, 10:60] - last[14:54, 22:72]).mean() < 12


def test_tubelet_has_the_boxes_of_sampled_frames_within_the_event():
    scene = still(Thing("circle", "red", "small", 20, 40, 20), events=(Event(0, "moves right", 1, 2, dx=40),))
    boxes = tubelet(scene, scene.events[0], num_frames=5)  # frames 0, 10, 20, 30, 40
    assert boxes == [{"time": 1.0, "box": [10, 30, 30, 50]}, {"time": 2.0, "box": [50, 30, 70, 50]}]


def test_video_rows_use_only_the_default_prompt_template_unless_others_is_given():
    scene, rng = VIDEOS[0], np.random.default_rng(0)
    assert not any("messages" in row for row in video_rows(scene, "a.mp4", rng, 20) + image_rows(IMAGES[0], "a.jpg", rng))
    training = [row for scene in VIDEOS for row in video_rows(scene, "a.mp4", rng, 20, others=0.3)]
    tvg = [row for row in training if row["task"] == "tvg"]
    assert 0.1 < np.mean(["messages" in row for row in tvg]) < 0.5
    short = {"box_at", "event_at", "caption", "deeds", "doer", "start", "middle", "end", "elc_at"}
    assert {row["task"] for row in training} == {"tvg", "tr", "stvg", "svg", "elc", *short}


def asked_and_told(rows: list[dict], task: str) -> list[tuple[str, str]]:
    return [tuple(message["content"] for message in row["messages"]) for row in rows if row["task"] == task]


def test_attributes_expression_matches_one_object_and_omits_the_answer():
    for scene in IMAGES:
        for number, thing in enumerate(scene.things):
            for words, kind, value in attributes(scene, number):
                said = set(words.split()) - {"the", "object"}
                assert [other for other in scene.things if said <= {other.shape, other.colour, other.size}] == [thing]
                assert value == getattr(thing, kind) and value not in said


def test_image_rows_ask_for_attributes_by_expression_and_by_box():
    scene = still(Thing("circle", "red", "small", 20, 40, 20), Thing("square", "red", "large", 60, 40, 30), num_frames=1)
    rows = image_rows(scene, "a.jpg", np.random.default_rng(0), others=1.0)
    by_words, by_box = asked_and_told(rows, "vqa"), asked_and_told(rows, "vqa_at")
    assert {answer for question, answer in by_words if "the small circle" in question} == {"It is red."}
    assert {answer for question, answer in by_words if "the large object" in question} == {"It is red.", "It is a square."}
    assert not any("the red object" in question for question, _ in by_words)  # there are two such objects
    assert [answer for question, answer in by_box if box_text([45, 25, 75, 55]) in question] == [
        "It is large.",
        "It is red.",
        "It is a square.",
    ]


def test_image_rows_ask_for_edges_with_every_unique_expression():
    scene = still(Thing("circle", "red", "small", 20, 40, 20), Thing("square", "red", "large", 60, 40, 30), num_frames=1)
    edges = asked_and_told(image_rows(scene, "a.jpg", np.random.default_rng(0), others=1.0), "edge")
    told = {(side, "circle" in question): answer for question, answer in edges for side in ("left", "bottom") if side in question}
    assert told == {
        ("left", True): "It is <w10.0px>.",
        ("left", False): "It is <w45.0px>.",
        ("bottom", True): "It is <h50.0px>.",
        ("bottom", False): "It is <h55.0px>.",
    }
    assert not any("the red object" in question for question, _ in edges)


def test_video_rows_ask_for_start_middle_and_end_separately():
    scene = still(Thing("circle", "red", "small", 20, 40, 20), events=(Event(0, "moves right", 1, 2.5, dx=9),))
    rows = video_rows(scene, "a.mp4", np.random.default_rng(0), 20, others=1.0)
    starts, middles, ends = (asked_and_told(rows, task) for task in ("start", "middle", "end"))
    assert {answer for _, answer in starts} == {"It is <t1.0s>."} and {answer for _, answer in ends} == {"It is <t2.5s>."}
    assert {answer for _, answer in middles} == {"It is <t1.75s>."}
    assert {verb for verb in ("moves right", "moves to the right", "goes right") for question, _ in starts if verb in question} == {
        "moves right",
        "moves to the right",
        "goes right",
    }


def test_video_rows_deeds_are_listed_in_order_and_doer_is_asked_only_if_unique():
    circle, cross = Thing("circle", "red", "small", 20, 40, 20), Thing("cross", "blue", "small", 60, 40, 20)
    events = (Event(0, "moves right", 0.5, 1, dx=9), Event(0, "turns", 1.5, 2, colour="blue"), Event(1, "moves right", 2, 3, dx=9))
    rows = video_rows(still(circle, cross, events=events), "a.mp4", np.random.default_rng(0), 20, others=1.0)
    deeds = asked_and_told(rows, "deeds")
    assert {answer for question, answer in deeds if "circle" in question} == {"It moves right, then turns blue."}
    assert {answer for question, answer in deeds if "cross" in question} == {"It moves right."}
    assert {answer for _, answer in asked_and_told(rows, "doer")} == {"The small red circle."}  # both objects move right
    rows = video_rows(still(circle), "a.mp4", np.random.default_rng(0), 20, others=1.0)
    assert {answer for _, answer in asked_and_told(rows, "deeds")} == {"It does nothing."}


def test_video_rows_elc_at_asks_by_a_box_at_a_sampled_time_of_the_event():
    circle, cross = Thing("circle", "red", "small", 20, 40, 20), Thing("cross", "blue", "small", 60, 40, 20)
    events = (Event(0, "moves right", 1, 2, dx=20), Event(1, "disappears", 1, 2))
    rows = video_rows(still(circle, cross, events=events), "a.mp4", np.random.default_rng(0), 5, others=1.0)  # 0, 1, 2, 3 and 4 s
    asked = asked_and_told(rows, "elc_at")
    assert {answer for _, answer in asked} == {"The small red circle moves right."}  # an object that disappears has no box
    for moment, box in (("<t1.0s>", [10, 30, 30, 50]), ("<t2.0s>", [30, 30, 50, 50])):
        assert [box_text(box) in question for question, _ in asked if moment in question] == [True]


def test_video_rows_event_that_hides_the_object_has_only_temporal_tasks():
    scene = still(Thing("circle", "red", "small", 20, 40, 20), events=(Event(0, "disappears", 1, 2),))
    rows = video_rows(scene, "a.mp4", np.random.default_rng(0), 20)
    assert [row["task"] for row in rows] == ["tvg", "tr"]
    assert happening(scene, scene.events[0]) == "the small red circle disappears"


def test_make_scene_easy_has_one_object_or_objects_distinguished_by_each_word():
    for number in range(40):
        picture = make_scene(scene_seed("train", number), is_video=False, easy=True)
        for words in ([thing.colour for thing in picture.things], [thing.shape for thing in picture.things]):
            assert len(set(words)) == len(words) >= 2
        for place in range(len(picture.things)):
            assert len(references(picture, place)) == 5
        video = make_scene(scene_seed("train", number), is_video=True, easy=True)
        assert len(video.things) == 1 and 1 <= len(video.events) <= 2
    rows = image_rows(picture, "a.jpg", np.random.default_rng(0), others=1.0)
    assert sum(row["task"] == "rec" for row in rows) == 5 * len(picture.things)


def test_write_training_data_is_valid_for_every_stage_and_keeps_media(tmp_path):
    counts = {"num_videos": 3, "num_images": 2, "num_easy_videos": 2, "num_easy_images": 2}
    write_training_data(tmp_path, **counts, num_frames=20)
    for name, phase in PHASES.items():
        assert validate_mixture(tmp_path / f"{name}.yaml") == []
        rows = load_mixture(tmp_path / f"{name}.yaml", cache_dir=str(tmp_path / "cache"))
        asked = Counter((row["messages"][0]["content"][0]["path"], row["task"]) for row in rows)
        assert all(count <= phase.tasks[task] for (_, task), count in asked.items())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "media").iterdir()}
    assert len(before) == 9
    assert sum(path.name.startswith("easy-train-") for path in before) == 4  # needed to make the scene again from its seed
    write_training_data(tmp_path, **counts, num_frames=20)  # existing videos and images are kept
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "media").iterdir()} == before


def test_make_rows_in_several_processes_gives_the_rows_and_files_of_one(tmp_path, monkeypatch):
    in_one, in_several = tmp_path / "one", tmp_path / "several"
    expected = list(make_rows(in_one, "train", "image", 5, 20))
    monkeypatch.setattr(shapes_files, "_CHUNK", 2)
    monkeypatch.setattr(shapes_files, "map", lambda *rest: pytest.fail("made in this process"), raising=False)
    assert list(make_rows(in_several, "train", "image", 5, 20)) == expected
    assert {path.name: path.read_bytes() for path in in_several.iterdir()} == {path.name: path.read_bytes() for path in in_one.iterdir()}


def test_write_questions_writes_per_task_samples_for_every_task(tmp_path):
    write_questions(tmp_path, "test", per_task=4, num_frames=20)
    for task in TASKS:
        rows = [json.loads(line) for line in (tmp_path / f"{task}.jsonl").read_text().splitlines()]
        assert len(rows) == 4 and {row["task"] for row in rows} == {task}
        assert len({row["id"] for row in rows}) == 4
        assert all((tmp_path / "media" / row[TASKS[task].medium]).is_file() for row in rows)


@pytest.mark.parametrize(("num_frames", "fraction"), [(20, (1.0, 1.0)), (60, (0.7, 0.9))])
def test_event_clip_has_a_box_at_as_many_sampled_frames_as_the_event_fills(num_frames, fraction):
    """An event ends between two frames, so that the first and the last frame of a clip may be outside it."""
    clips = [clip for number in range(20) if (clip := event_clip("test", number, num_frames, fraction))]
    assert len(clips) > 15
    for clip in clips:
        start, end = clip.span
        duration = (clip.last - clip.first) / clip.scene.fps
        assert 0 <= start < end <= duration and (end - start) * clip.scene.fps >= num_frames
        boxes = clip.boxes(num_frames)
        assert fraction[0] * num_frames - 3 <= len(boxes) <= num_frames
        assert all(start <= box["time"] <= end for box in boxes)
        frame = round(boxes[-1]["time"] * clip.scene.fps)
        moved = clip.scene.box(clip.event.thing, (clip.first + frame) / clip.scene.fps)
        assert boxes[-1]["box"] == pytest.approx(moved, abs=0.01)


def test_event_clip_frames_are_those_of_the_slowed_scene():
    clip = event_clip("test", 0, 20)
    frames = list(clip.frames())
    assert len(frames) == clip.last - clip.first + 1
    scene = make_scene(scene_seed("test", 0), is_video=True)
    factor = (clip.scene.num_frames - 1) // (scene.num_frames - 1)
    assert factor > 1 and clip.scene.duration == pytest.approx(factor * scene.duration)
    for event, slow in zip(scene.events, clip.scene.events, strict=True):
        middle = (event.start + event.end) / 2
        assert (slow.start, slow.end) == pytest.approx((factor * event.start, factor * event.end))
        assert clip.scene.state(event.thing, factor * middle).box == pytest.approx(scene.state(event.thing, middle).box)


def test_write_video_encodes_every_frame(tmp_path):
    scene = VIDEOS[1]
    write_video(scene, tmp_path / "a.mp4")
    videos = LlavaSTVideoProcessor(num_frames=5)(str(tmp_path / "a.mp4"), return_metadata=True, return_tensors="pt")
    [metadata] = videos["video_metadata"]
    assert (metadata.total_num_frames, metadata.fps) == (scene.num_frames, scene.fps)
    assert (metadata.width, metadata.height) == (scene.width, scene.height)
