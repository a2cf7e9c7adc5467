# SPDX-License-Identifier: Apache-2.0
"""The model that comes with the package: answers, and not only shapes, of each task, about media that the test encodes itself."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import pipeline
from transformers.utils import logging

import llava_st_hf
from llava_st_hf.bundled import BUNDLED_MODEL, NOTICE
from llava_st_hf.data.shapes import Scene, make_scene, scene_seed
from llava_st_hf.data.shapes_files import write_image, write_video
from llava_st_hf.data.shapes_questions import happening, name_of, tubelet
from llava_st_hf.evaluation.metrics import box_iou, temporal_iou


COUNT = 12
# Of the test split, which nothing was trained on; far from the questions that docs/bundled_model.md measures.
IMAGES = [make_scene(scene_seed("test", number), is_video=False) for number in range(50000, 50000 + COUNT)]
VIDEOS = [make_scene(scene_seed("test", number), is_video=True) for number in range(50000, 50000 + COUNT)]


@pytest.fixture(scope="module")
def grounder():
    return pipeline("video-grounding", batch_size=COUNT)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> tuple[list[str], list[str]]:
    """Paths of the pictures and of the videos."""
    folder = tmp_path_factory.mktemp("media")
    for number, (image, video) in enumerate(zip(IMAGES, VIDEOS, strict=True)):
        write_image(image, folder / f"{number}.jpg")
        write_video(video, folder / f"{number}.mp4")
    return [str(folder / f"{number}.jpg") for number in range(COUNT)], [str(folder / f"{number}.mp4") for number in range(COUNT)]


def events() -> list:
    """One event of each video, such as can be followed."""
    return [next(event for event in scene.events if event.kind != "disappears") for scene in VIDEOS]


def corners(box: dict) -> list[float]:
    return [box[side] for side in ("xmin", "ymin", "xmax", "ymax")]


def span_overlap(answer: dict, event) -> float:
    """tIoU; 0 where the answer names no span."""
    found = answer["events"][0] if answer["events"] else {"start": None}
    if found["start"] is None:
        return 0.0
    return float(temporal_iou(np.array([[found["start"], found["end"]]]), np.array([[event.start, event.end]]))[0])


def box_overlaps(answer: dict, scene: Scene, event) -> float:
    """Mean IoU over true moments with the nearest box that the answer gives within a sampled frame of it."""
    truth, step = tubelet(scene, event, 20), scene.duration / 19
    given = answer["events"][0]["boxes"] if answer["events"] else []
    overlaps = []
    for moment in truth:
        near = [box for box in given if abs(box["time"] - moment["time"]) < 0.75 * step]
        nearest = min(near, key=lambda box: abs(box["time"] - moment["time"]), default=None)
        overlaps.append(0.0 if nearest is None else float(box_iou(np.array([corners(nearest["box"])]), np.array([moment["box"]]))[0]))
    return float(np.mean(overlaps))


def said(answer: dict) -> str:
    return answer["text"].lower()


# ============================================================ What it is


def test_it_is_small_and_in_the_package():
    files = list(BUNDLED_MODEL.iterdir())
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") < 25 * 2**20
    with safe_open(BUNDLED_MODEL / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert json.loads((BUNDLED_MODEL / "config.json").read_text())["use_lape"]


def test_it_is_what_the_pipeline_takes_without_a_model_and_says_so(caplog):
    logger = logging.get_logger("llava_st_hf.pipeline_llava_st")
    logger.addHandler(caplog.handler)
    try:
        grounder = pipeline("video-grounding")
    finally:
        logger.removeHandler(caplog.handler)
    assert NOTICE in caplog.messages
    assert isinstance(grounder.model, llava_st_hf.LlavaSTForConditionalGeneration)
    assert grounder.model.dtype == torch.float32


# ============================================================ What it answers


def test_rec_finds_things(grounder, media):
    answers = grounder(
        [{"image": path, "task": "rec", "text": f"the {name_of(scene, 0)}"} for path, scene in zip(media[0], IMAGES, strict=True)]
    )
    boxes = [corners(answer["events"][0]["boxes"][0]["box"]) for answer in answers]
    assert box_iou(np.array(boxes), np.array([scene.box(0, 0.0) for scene in IMAGES])).mean() > 0.6


def test_reg_names_things(grounder, media):
    answers = grounder(
        [{"image": path, "task": "reg", "box": list(scene.box(0, 0.0))} for path, scene in zip(media[0], IMAGES, strict=True)]
    )
    assert np.mean([name_of(scene, 0) in said(answer) for answer, scene in zip(answers, IMAGES, strict=True)]) > 0.6


def test_dgc_names_and_finds_everything(grounder, media):
    answers = grounder([{"image": path, "task": "dgc"} for path in media[0]])
    found = []
    for answer, scene in zip(answers, IMAGES, strict=True):
        for number in range(len(scene.things)):
            named = [
                event["boxes"][0]["box"]
                for event in answer["events"]
                if event["boxes"] and name_of(scene, number) in (event["caption"] or "").lower()
            ]
            truth = np.array([scene.box(number, 0.0)])
            found.append(any(box_iou(np.array([corners(box)]), truth)[0] > 0.5 for box in named))
    assert np.mean(found) > 0.5


def test_tvg_says_when(grounder, media):
    questions = [
        {"video": path, "task": "tvg", "text": happening(scene, event)}
        for path, scene, event in zip(media[1], VIDEOS, events(), strict=True)
    ]
    assert np.mean([span_overlap(answer, event) for answer, event in zip(grounder(questions), events(), strict=True)]) > 0.6


def test_tr_says_what(grounder, media):
    answers = grounder(
        [{"video": path, "task": "tr", "span": (event.start, event.end)} for path, event in zip(media[1], events(), strict=True)]
    )
    right = [happening(scene, event) in said(answer) for answer, scene, event in zip(answers, VIDEOS, events(), strict=True)]
    assert np.mean(right) > 0.5


def test_stvg_says_when_and_where(grounder, media):
    questions = [
        {"video": path, "task": "stvg", "text": f"{happening(scene, event).capitalize()}."}
        for path, scene, event in zip(media[1], VIDEOS, events(), strict=True)
    ]
    answers = grounder(questions)
    assert np.mean([span_overlap(answer, event) for answer, event in zip(answers, events(), strict=True)]) > 0.6
    assert np.mean([box_overlaps(answer, scene, event) for answer, scene, event in zip(answers, VIDEOS, events(), strict=True)]) > 0.3


def test_svg_says_where(grounder, media):
    questions = [
        {"video": path, "task": "svg", "span": (event.start, event.end), "text": f"{happening(scene, event).capitalize()}."}
        for path, scene, event in zip(media[1], VIDEOS, events(), strict=True)
    ]
    answers = grounder(questions)
    assert np.mean([box_overlaps(answer, scene, event) for answer, scene, event in zip(answers, VIDEOS, events(), strict=True)]) > 0.3


def test_elc_says_until_when_what_and_where(grounder, media):
    questions = [
        {"video": path, "task": "elc", "time": event.start, "box": tubelet(scene, event, 20)[0]["box"]}
        for path, scene, event in zip(media[1], VIDEOS, events(), strict=True)
    ]
    answers = grounder(questions)
    assert np.mean([span_overlap(answer, event) for answer, event in zip(answers, events(), strict=True)]) > 0.5
    right = [happening(scene, event) in said(answer) for answer, scene, event in zip(answers, VIDEOS, events(), strict=True)]
    assert np.mean(right) > 0.5


def test_a_batch_answers_as_single_questions_do(grounder, media):
    questions = [
        {"video": path, "task": "tvg", "text": happening(scene, event)}
        for path, scene, event in zip(media[1], VIDEOS, events(), strict=True)
    ]
    together = grounder(questions[:4])
    assert [grounder(question)["text"] for question in questions[:4]] == [answer["text"] for answer in together]
