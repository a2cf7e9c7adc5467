# SPDX-License-Identifier: Apache-2.0
"""`refine=` of the pipeline."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from llava_st_hf import Grounding, VideoGroundingPipeline
from llava_st_hf.evaluation.metrics import Tubelets, tubelet_iou
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.model.questions_llava_st import prepare_question
from llava_st_hf.model.results_llava_st import Box, Event
from llava_st_hf.refinement import refine_answer
from llava_st_hf.refinement.masks import mask_box
from llava_st_hf.shapes.detector import ShapeDetector, connected_regions, described_object
from llava_st_hf.shapes.files import write_video as write_scene
from llava_st_hf.shapes.questions import tubelet
from llava_st_hf.shapes.scenes import SHAPES, make_scene, scene_seed, shape_mask
from modeling_tests.media import write_video
from modeling_tests.processors import model_for, tiny_processor
from modeling_tests.test_pipeline_llava_st import Script
from modeling_tests.tiny_refiners import WhiteSquares, square_frames, tiny_detector


WRITTEN = "During {<TEMP-050><TEMP-080>}."  # frames 15 to 23 of 30, at 10 frames per second


@pytest.fixture(scope="module")
def grounder():
    processor = tiny_processor()
    return pipeline("video-grounding", model=model_for(processor), processor=processor)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Writes 30 frames of `square_frames` at 10 frames per second."""
    return str(write_video(tmp_path_factory.mktemp("media") / "squares.mp4", square_frames(30), fps=10))


def say(grounder, inputs, *written, **kwargs):
    """The result for answers that the model is forced to generate, in one batch."""
    return grounder(inputs, logits_processor=[Script(grounder, list(written or [WRITTEN]))], max_new_tokens=60, **kwargs)


def are_refined(answer: dict, first: int = 15, last: int = 23) -> bool:
    """Whether every frame of the span has the box around the white square."""
    boxes = Grounding.from_dict(answer).events[0].boxes
    return [box.frame for box in boxes] == list(range(first, last + 1)) and all(abs(box.xmin - 2 * box.frame) <= 1 for box in boxes)


def test_pipeline_refine_gives_boxes_of_every_frame_and_keeps_the_span(grounder, video):
    plain = say(grounder, video, text="a square", task="tvg")
    refiner = WhiteSquares()
    refined = say(grounder, video, text="a square", task="tvg", refine=refiner)
    assert are_refined(refined) and refiner.targets[0].text == "a square"
    assert {**refined, "events": [{**refined["events"][0], "boxes": []}]} == plain


def test_pipeline_refine_of_a_clip_has_frames_of_the_file(grounder, video):
    answer = say(grounder, video, "During {<TEMP-000><TEMP-099>}.", text="a square", task="tvg", clip=[10, 20], refine=WhiteSquares())
    assert are_refined(answer, 10, 20)


@pytest.mark.parametrize("kind", ["bytes", "open file", "frames", "chat", "list", "generator", "video_url"])
def test_pipeline_refine_reads_every_kind_of_input_again(grounder, video, kind):
    question = {"text": "a square", "task": "tvg"}
    with open(video, "rb") as file:
        content = [{"type": "text", "text": "When does it move?"}]
        inputs = {
            "bytes": {"video": Path(video).read_bytes(), **question},
            "open file": {"video": file, **question},
            "frames": {"video": list(square_frames(30)), "fps": 10, **question},
            "chat": [{"role": "user", "content": [{"type": "video", "path": video}, *content]}],
            "list": [{"video": video, **question}],
            "generator": ({"video": video, **question} for _ in range(1)),
            "video_url": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": f"file://{video}"}}, *content]}],
        }[kind]
        answer = say(grounder, inputs, refine=WhiteSquares())
        assert are_refined(next(iter(answer)) if kind in ("list", "generator") else answer)


def test_pipeline_refine_of_an_image_uses_the_phrase(grounder):
    refiner = WhiteSquares()
    box = "[<WIDTH-010><HEIGHT-010><WIDTH-050><HEIGHT-050>]"
    answer = say(grounder, {"image": square_frames(5)[4], "text": "the square"}, f"A square {box}.", task="rec", refine=refiner)
    (event,) = answer["events"]
    assert event["boxes"][0]["box"] == {"xmin": 8.0, "ymin": 16.0, "xmax": 24.0, "ymax": 32.0}
    assert refiner.targets[0].text in ("A square", "the square") and refiner.targets[0].answer_boxes[0].xmin == pytest.approx(9.7, abs=0.1)


def test_session_and_stream_refine_their_answers(grounder, video):
    options = {"text": "a square", "task": "tvg", "refine": WhiteSquares(), "max_new_tokens": 60}
    with grounder.open(video) as session:
        assert are_refined(session.ask(logits_processor=[Script(grounder, [WRITTEN])], **options))
    *_, last = grounder.stream(video, logits_processor=[Script(grounder, [WRITTEN])], **options)
    assert are_refined(last["answer"])


def test_pipeline_refine_by_name_loads_the_model_once(grounder, video, tmp_path, monkeypatch):
    for part in tiny_detector("owlv2"):
        part.save_pretrained(tmp_path)
    made, make = [], VideoGroundingPipeline.make_refinement
    monkeypatch.setattr(VideoGroundingPipeline, "make_refinement", staticmethod(lambda *given: made.append(given) or make(*given)))
    for _ in range(2):
        answer = say(grounder, video, text="a square", task="tvg", refine=str(tmp_path))
    assert made == [(str(tmp_path), grounder.device)]
    assert len(answer["events"][0]["boxes"]) == 9 and all(0 <= box["score"] <= 1 for box in answer["events"][0]["boxes"])


def test_pipeline_created_with_refine_uses_it_until_a_call_has_none(video):
    processor = tiny_processor()
    grounder = pipeline("video-grounding", model=model_for(processor), processor=processor, refine=WhiteSquares())
    assert are_refined(say(grounder, video, text="a square", task="tvg"))
    assert say(grounder, video, text="a square", task="tvg", refine=None)["events"][0]["boxes"] == []


class Stream(io.RawIOBase):
    def seekable(self):
        return False


@pytest.mark.parametrize(
    ("inputs", "refine", "message"),
    [
        ({"video": "x.mp4", "text": "a", "task": "tvg"}, 3, "refine must be the name of a checkpoint"),
        ({"video": Stream(), "text": "a", "task": "tvg"}, WhiteSquares(), "which is not possible for a stream"),
        ([{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "a"}]}], WhiteSquares(), "give it in the message"),
    ],
)
def test_pipeline_refine_that_is_not_possible_raises_before_generation(grounder, monkeypatch, inputs, refine, message):
    monkeypatch.setattr(grounder.model, "generate", lambda **_: pytest.fail("generated"))
    with pytest.raises(ValueError, match=message):
        grounder(inputs, refine=refine)


def test_pipeline_refine_of_a_prepared_question_needs_its_source(grounder, video):
    question = {"text": "a square", "task": "tvg"}
    with pytest.raises(ValueError, match="keep_source=True"):
        grounder(prepare_question(grounder.processor, video, **question), refine=WhiteSquares())
    assert are_refined(say(grounder, prepare_question(grounder.processor, video, keep_source=True, **question), refine=WhiteSquares()))


def test_pipeline_refine_without_the_package_names_it(grounder, monkeypatch):
    monkeypatch.setattr(VideoGroundingPipeline, "make_refinement", None)
    with pytest.raises(ValueError, match="needs the package llava-st-hf"):
        grounder("x.mp4", text="a", task="tvg", refine="google/owlv2-base-patch16")


# Shapes dataset


def test_shape_detector_raises_the_viou_of_coarse_boxes(tmp_path):
    path, rng = str(tmp_path / "clip.mp4"), np.random.default_rng(0)
    truth, found = Tubelets(), {"answer": Tubelets(), "refined": Tubelets()}
    for number in (9, 12):
        scene = make_scene(scene_seed("test", number), is_video=True)
        event = next(event for event in scene.events if event.kind != "disappears")
        write_scene(scene, path)
        frames = [frame for frame in range(scene.num_frames) if event.start <= frame / scene.fps <= event.end]
        truth.append({frame: scene.box(event.thing, frame / scene.fps) for frame in frames})
        coarse = [np.add(box["box"], rng.normal(0, 4, 4)) for box in tubelet(scene, event, 12)]
        boxes = [Box(*sides, time=box["time"], frame=round(box["time"] * scene.fps))
                 for sides, box in zip(coarse, tubelet(scene, event, 12), strict=True)]  # fmt: skip
        media = MediaInfo("video", scene.width, scene.height, fps=scene.fps, last_frame=scene.num_frames - 1)
        thing = scene.things[event.thing]
        text = f"the {thing.size} {thing.colour} {thing.shape}"
        given = Grounding("", (Event(text, frames[0] / scene.fps, frames[-1] / scene.fps, tuple(boxes)),), media)
        for name, answer in (("answer", given), ("refined", refine_answer(given, path, ShapeDetector()))):
            found[name].append({frame: box.xyxy for frame, box in answer.boxes_per_frame(answer.events[0]).items()})
    coarse, refined = (tubelet_iou(tubelets, truth) for tubelets in found.values())
    assert (refined > coarse + 0.05).all() and (refined > 0.75).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The small blue circle moves right.", ("blue", "circle", "small")),
        ("the red object hits the large white cross", ("red", None, None)),
        ("the square", (None, "square", None)),
        ("nothing", (None, None, None)),
    ],
)
def test_described_object_is_the_first_noun_phrase(text, expected):
    assert described_object(text) == expected


def test_connected_regions_have_numbers_of_their_own():
    mask = torch.tensor([[[[1, 1, 0, 0, 1], [0, 0, 1, 0, 1], [1, 0, 0, 0, 1]]]], dtype=torch.bool)
    labels = connected_regions(mask)[0, 0]
    assert labels[0, 0] == labels[1, 2] and len({int(labels[place]) for place in ((0, 0), (0, 4), (2, 0))}) == 3
    assert (labels[~mask[0, 0]] == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_mask_fills_its_box(shape):
    mask = shape_mask(shape, (4, 6, 34, 46), (60, 50))
    assert np.abs(np.subtract(mask_box(mask), (4, 6, 34, 46))).max() <= 1
