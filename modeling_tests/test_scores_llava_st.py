# SPDX-License-Identifier: Apache-2.0
"""Refined positions and scores: from log probabilities of coordinate tokens to the results of parser, processor and pipeline."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import GenerationConfig, pipeline

from llava_st_hf import parse_answer
from llava_st_hf.evaluation.metrics import box_iou
from llava_st_hf.model.coordinates_llava_st import COORDINATE_TOKEN
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.model.scores_llava_st import (
    WINDOW,
    ScoredPosition,
    calibrated,
    expected_ious,
    refined_box,
    refined_pair,
    refined_times,
    score_answer,
    score_coordinates,
    set_calibration,
)
from llava_st_hf.shapes.demo_model import DEMO_MODEL_PATH
from llava_st_hf.shapes.files import write_image, write_video
from llava_st_hf.shapes.scenes import make_scene, scene_seed
from modeling_tests.processors import tiny_processor


BINS, SIZES = 100, [100, 100, 100]
VIDEO = MediaInfo("video", width=990, height=990, fps=1.0, last_frame=990)  # bin k is at 10 k seconds, at 10 k pixels
AXES = {"TEMP": 0, "HEIGHT": 1, "WIDTH": 2}


def position(index: int, probabilities: dict[int, float], num_bins: int = BINS) -> ScoredPosition:
    """The position of a token of the first axis that was generated with these probabilities of its bins."""
    logits = torch.full((1, 3 * num_bins), -torch.inf)
    for other, probability in probabilities.items():
        logits[0, other] = torch.tensor(probability).log()
    [found] = score_coordinates([7 + index], logits, [num_bins] * 3, start_token_id=7)
    return found


def scored_text(text: str, spread: float = 0.0) -> list[ScoredPosition]:
    """Positions of the coordinate tokens of a text: probability `1 - spread` of its bin, the rest of the next one."""
    return [
        position(int(token["bin"]), {int(token["bin"]): 1 - spread, int(token["bin"]) + 1: spread})
        for token in COORDINATE_TOKEN.finditer(text)
    ]


# Positions


def test_score_coordinates_two_neighbouring_bins_give_the_position_between_them():
    found = position(40, {40: 0.75, 41: 0.25})
    assert (found.bin, float(found)) == (40, 40 / 99)
    assert found.refined == pytest.approx(40.25 / 99)


def test_score_coordinates_bins_outside_the_window_and_other_tokens_do_not_shift_the_position():
    found = position(40, {40: 0.3, 40 + WINDOW: 0.1, 41 + WINDOW: 0.2, 90: 0.1, 100 + 50: 0.3})
    assert found.refined == pytest.approx((40 + WINDOW / 4) / 99)
    assert found.cumulative[-1] == pytest.approx(0.7)  # the height token is no bin of this axis


@pytest.mark.parametrize("index", [0, 99])
def test_score_coordinates_window_ends_at_the_ends_of_the_axis(index):
    neighbour = abs(index - 1)
    assert position(index, {index: 0.5, neighbour: 0.5}).refined == pytest.approx((index + neighbour) / 2 / 99)


def test_score_coordinates_without_probability_near_the_bin_give_the_bin():
    assert position(40, {80: 1.0}).refined == pytest.approx(40 / 99)


def test_score_coordinates_reads_each_token_on_its_axis_in_order():
    logits = torch.full((4, 300), -torch.inf)
    for step, column in enumerate((200 + 5, 7, 3, 100 + 9)):
        logits[step, column] = 0.0
    found = score_coordinates([50 + 205, 50 + 7, 3, 50 + 109], logits, SIZES, start_token_id=50)
    assert [(item.bin, round(item.refined * 99, 4)) for item in found] == [(5, 5), (7, 7), (9, 9)]


def test_score_coordinates_logits_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"must be of shape \(1, 300\).*got \(2, 300\)"):
        score_coordinates([7], torch.zeros(2, 300), SIZES, 7)


def test_score_answer_tokens_spelled_by_ordinary_tokens_have_no_position():
    processor = tiny_processor()
    ids = []
    for text in ("<TEMP-0", "40", ">: ", "<TEMP-041>", " and <WIDTH-00", "7> <", "<WIDTH-008>"):
        whole = processor.tokenizer(text)["input_ids"]
        letters = [token for letter in text for token in processor.tokenizer(letter)["input_ids"]]
        ids += whole if COORDINATE_TOKEN.fullmatch(text) else letters
    found = score_answer(processor, torch.tensor(ids), torch.zeros(len(ids), 300))
    tokens = COORDINATE_TOKEN.findall(processor.decode_answer(ids))
    assert [token[1] for token in tokens] == ["040", "041", "007", "008"]
    assert [None if item is None else item.bin for item in found] == [None, 41, None, 8]


# Order of refined values


def test_refined_pair_that_would_cross_keeps_its_bins():
    low, high = position(40, {40: 0.5, 41: 0.5}), position(40, {39: 0.4, 40: 0.6})
    assert refined_pair(low, high) == (40 / 99, 40 / 99)
    x2 = position(60, {60: 0.5, 61: 0.5})
    assert refined_box((low, low, x2, high)) == pytest.approx((40.5 / 99, 40 / 99, 60.5 / 99, 40 / 99))


_POSITIONS = st.builds(
    lambda index, shift, weight: position(index, {index: 1 - weight, min(max(index + shift, 0), 99): weight}),
    st.integers(0, 99),
    st.integers(-WINDOW, WINDOW),
    st.floats(0.01, 0.49),
)


@settings(max_examples=15)
@given(st.lists(_POSITIONS, min_size=3, max_size=8))
def test_refined_times_in_order_stay_in_order_and_in_their_span(positions):
    start, *times, end = sorted(positions)
    found = refined_times(times, start, end)
    low, high = refined_pair(start, end)
    assert found == sorted(found) and all(low <= time <= high for time in found)


def test_refined_times_that_would_cross_are_equal():
    earlier, later = position(40, {40: 0.4, 42: 0.6}), position(41, {41: 1.0})
    assert refined_times([None, earlier, later], None, None) == pytest.approx([None, 41.2 / 99, 41.2 / 99])
    assert refined_times([later, earlier], None, None) == pytest.approx([41 / 99, 41.2 / 99])


# Scores


def test_expected_ious_of_a_span_is_the_mean_over_the_probabilities():
    start, end = position(10, {10: 0.5, 20: 0.5}), position(30, {30: 0.75, 50: 0.25})
    answered = refined_pair(start, end)

    def iou(low, high):
        overlap = max(0.0, min(answered[1], high / 99) - max(answered[0], low / 99))
        return overlap / (answered[1] - answered[0] + (high - low) / 99 - overlap)

    wanted = sum(p * q * iou(low, high) for low, p in ((10, 0.5), (20, 0.5)) for high, q in ((30, 0.75), (50, 0.25)))
    assert expected_ious([(start, end)]) == [pytest.approx(wanted, abs=0.005)]


def test_expected_ious_of_boxes_equal_a_simulation():
    generator = torch.Generator().manual_seed(0)
    boxes, means = [], []
    for x1, y1, x2, y2 in ((10, 20, 40, 60), (0, 5, 99, 30), (50, 50, 55, 52)):
        rows = torch.softmax(-(torch.arange(BINS) - torch.tensor([x1, y1, x2, y2])[:, None]).abs() / 2.0, dim=-1)
        box = [
            score_coordinates([bin_], torch.log(torch.cat((row, torch.zeros(200))))[None], SIZES, 0)[0]
            for bin_, row in zip((x1, y1, x2, y2), rows, strict=True)
        ]
        drawn = torch.multinomial(rows, 20_000, replacement=True, generator=generator).T / 99
        means.append(box_iou(np.tile(refined_box(box), (20_000, 1)), drawn.numpy()).mean())
        boxes.append(box)
    assert expected_ious(boxes) == pytest.approx(means, abs=0.01)


def test_expected_ious_prompt_values_are_exact_and_have_no_score_alone():
    end = position(50, {50: 0.5, 90: 0.5})
    with_prompt, alone = expected_ious([(10 / 99, end), (0.1, 0.5)])
    assert with_prompt == pytest.approx((1 + 40 / 80) / 2, abs=0.01) and alone is None


def test_expected_ious_probability_of_other_tokens_lowers_the_score():
    start, end = position(10, {10: 1.0}), position(30, {30: 0.75, 200: 0.25})
    assert expected_ious([(start, end)]) == [pytest.approx(0.75, abs=0.01)]


def test_calibrated_is_the_logistic_map_and_increases():
    assert calibrated(0.8, None) == 0.8
    assert calibrated(0.8, (1.0, 0.0)) == pytest.approx(0.8)
    assert calibrated(0.8, (2.0, -1.0)) == pytest.approx(1 / (1 + np.exp(-(2 * np.log(4) - 1))))
    values = [calibrated(score, (1.4, -1.1)) for score in (0.0, 0.2, 0.5, 0.9, 1.0)]
    assert values == sorted(values) and values[0] >= 0 and values[-1] <= 1


@pytest.mark.parametrize("value", [[1, 2], {"boxes": [1, 0]}, {"span": [1]}, {"span": [0, 1]}, {"span": [float("nan"), 0]}, {"span": "ab"}])
def test_set_calibration_that_is_not_valid_is_an_error(value):
    with pytest.raises(ValueError, match=r"score_calibration must map .*; got .*"):
        set_calibration(GenerationConfig(), value)


# Results

STVG = (
    "During {<TEMP-010><TEMP-020>}. <TEMP-012>:[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
    "<TEMP-014>:[<WIDTH-050><HEIGHT-020><WIDTH-070><HEIGHT-040>]"
)


def test_parse_answer_with_coordinates_gives_refined_values_bins_and_scores():
    answer = parse_answer(STVG, VIDEO, BINS, BINS, coordinates=scored_text(STVG, 0.2))
    [event] = answer["events"]
    assert (event["start"], event["end"], event["bins"]) == (102.0, 202.0, {"start": 10, "end": 20})
    first, second = event["boxes"]
    assert (first["time"], first["frame"]) == (122.0, 122)
    assert first["box"] == {"xmin": 102.0, "ymin": 202.0, "xmax": 302.0, "ymax": 402.0}
    assert first["bins"] == {"time": 12, "xmin": 10, "ymin": 20, "xmax": 30, "ymax": 40}
    assert 0.8 < first["score"] < 1 and 0.8 < event["span_score"] < 1
    assert event["score"] == pytest.approx(event["span_score"] * (first["score"] + second["score"]) / 2, abs=1e-4)
    assert answer["notes"] == [] and json.loads(json.dumps(answer)) == answer


def test_parse_answer_with_certain_coordinates_equals_the_answer_without():
    plain, scored = parse_answer(STVG, VIDEO, BINS, BINS), parse_answer(STVG, VIDEO, BINS, BINS, coordinates=scored_text(STVG))
    [event] = scored["events"]
    assert event.pop("score") == event.pop("span_score") == 1.0 and event.pop("bins")
    for box in event["boxes"]:
        assert box.pop("score") == 1.0 and box.pop("bins")
    assert scored == plain


def test_parse_answer_calibration_applies_to_spans_and_boxes():
    coordinates = scored_text(STVG, 0.25)
    [raw] = parse_answer(STVG, VIDEO, BINS, BINS, coordinates=coordinates)["events"]
    calibration = {"span": [1, -1], "video_box": [2, 0.5], "image_box": [9, 9]}
    [event] = parse_answer(STVG, VIDEO, BINS, BINS, coordinates=coordinates, score_calibration=calibration)["events"]
    assert event["span_score"] == pytest.approx(calibrated(raw["span_score"], (1, -1)), abs=2e-4)
    assert event["boxes"][0]["score"] == pytest.approx(calibrated(raw["boxes"][0]["score"], (2, 0.5)), abs=2e-3)


def test_parse_answer_values_of_the_prompt_have_neither_bin_nor_score():
    text = "Ends in <TEMP-020>, a man falls."
    [event] = parse_answer(text, VIDEO, BINS, BINS, start=0.1, box=(0.1, 0.1, 0.2, 0.2), coordinates=scored_text(text, 0.25))["events"]
    assert event["bins"] == {"start": None, "end": 20} and event["start"] == 99.0 and event["end"] == 202.5
    assert event["boxes"][0]["score"] is None and set(event["boxes"][0]["bins"].values()) == {None}
    assert event["score"] == event["span_score"] > 0.9
    [described] = parse_answer("A man falls.", VIDEO, BINS, BINS, span=(0.1, 0.2), coordinates=[])["events"]
    assert described["score"] is described["span_score"] is None


def test_parse_answer_single_time_has_no_span_score():
    text = "At <TEMP-020>, a man falls."
    [event] = parse_answer(text, VIDEO, BINS, BINS, coordinates=scored_text(text, 0.25))["events"]
    assert event["start"] == event["end"] == 202.5 and event["score"] is None


def test_parse_answer_number_of_coordinates_that_differs_is_an_error():
    with pytest.raises(ValueError, match="the text's 12 coordinate tokens, got 2"):
        parse_answer(STVG, VIDEO, BINS, BINS, coordinates=scored_text(STVG)[:2])


@settings(max_examples=40)
@given(
    st.lists(
        st.sampled_from(
            [
                "<TEMP-010>",
                "<TEMP-011>",
                "<WIDTH-030>",
                "<WIDTH-031>",
                "<HEIGHT-050>",
                ":",
                "[",
                "]",
                "{",
                "}",
                " to ",
                "Ends in ",
                "a cat.",
            ]
        ),
        max_size=25,
    )
)
def test_parse_answer_with_coordinates_reads_any_text_as_without(pieces):
    text = "".join(pieces)
    plain = parse_answer(text, VIDEO, BINS, BINS)
    scored = parse_answer(text, VIDEO, BINS, BINS, coordinates=scored_text(text, 0.4))
    assert (plain["text"], plain["notes"]) == (scored["text"], scored["notes"])
    for before, after in zip(plain["events"], scored["events"], strict=True):
        assert before["caption"] == after["caption"] and len(before["boxes"]) == len(after["boxes"])
        assert after["start"] is None or after["end"] is None or after["start"] <= after["end"]
        for box in after["boxes"]:
            assert box["box"]["xmin"] <= box["box"]["xmax"] and box["box"]["ymin"] <= box["box"]["ymax"]


# Pipeline


@pytest.fixture(scope="module")
def demo():
    return pipeline("video-grounding", model=DEMO_MODEL_PATH)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A question about a box in an image and one about a span in a video."""
    folder, scene, film = (
        tmp_path_factory.mktemp("media"),
        make_scene(scene_seed("test", 0), False),
        make_scene(scene_seed("test", 0), True),
    )
    write_image(scene, folder / "image.jpg")
    write_video(film, folder / "video.mp4")
    thing = scene.things[0]
    text = f"the {thing.size} {thing.colour} {thing.shape}"
    return [
        {"image": str(folder / "image.jpg"), "text": text, "task": "rec"},
        {"video": str(folder / "video.mp4"), "text": "the object moves", "task": "tvg"},
    ]


@pytest.fixture(scope="module")
def scored(demo, questions):
    return demo(questions, scores=True, batch_size=2)


def test_pipeline_scores_are_those_of_the_processor(demo, questions, scored):
    prepared = demo.preprocess(questions[1])
    output = demo.model.generate(
        **prepared["model_inputs"], max_new_tokens=200, output_coordinate_scores=True, return_dict_in_generate=True
    )
    length = prepared["model_inputs"]["input_ids"].shape[1]
    [answer] = demo.processor.post_process_grounding(
        output.sequences[:, length:],
        media_info=[[prepared["context"].medium]],
        coordinate_logits=output.coordinate_logits,
        score_calibration=demo.model.generation_config.score_calibration,
    )
    [event], [wanted] = answer["events"], scored[1]["events"]
    assert event["bins"] == wanted["bins"] and 0 < event["score"] < 1
    assert (event["start"], event["end"], event["score"]) == pytest.approx((wanted["start"], wanted["end"], wanted["score"]), abs=1e-3)


def test_pipeline_scores_are_an_addition_and_json_serializable(demo, questions, scored):
    plain = demo(questions)
    assert json.loads(json.dumps(scored)) == scored and [a["text"] for a in scored] == [a["text"] for a in plain]
    [box], [before] = scored[0]["events"][0]["boxes"], plain[0]["events"][0]["boxes"]
    bins = [round(value / side * 99) for value, side in zip(before["box"].values(), image_sides(questions[0]), strict=True)]
    assert list(box["bins"].values()) == bins and box["box"] != before["box"]
    assert set(before) == {"box"} and set(plain[1]["events"][0]) == {"start", "end", "caption", "boxes"}


def image_sides(question) -> tuple[int, ...]:
    with Image.open(question["image"]) as image:
        return image.size * 2


def test_pipeline_scores_with_a_calibration_that_is_not_valid_raise_before_generation(demo, questions, monkeypatch):
    monkeypatch.setattr(demo.model.generation_config, "score_calibration", {"span": [-1, 0]})
    monkeypatch.setattr(demo.model, "generate", None)
    with pytest.raises(ValueError, match="score_calibration must map"):
        demo(questions[0], scores=True)


def test_pipeline_generate_outputs_reach_the_result_of_each_question(demo, questions):
    inputs = [questions[1], {**questions[1], "text": "the object appears"}]
    pair = demo(inputs, batch_size=2, output_scores=True, output_hidden_states=True, generation_config=GenerationConfig(max_new_tokens=4))
    alone = demo(inputs[1], output_scores=True, max_new_tokens=4)
    vocabulary = demo.model.config.text_config.vocab_size
    assert [tuple(step.shape) for step in alone["generation"]["scores"]] == [(vocabulary,)] * 4
    for mine, other in zip(alone["generation"]["scores"], pair[1]["generation"]["scores"], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)
    hidden = pair[0]["generation"]["hidden_states"]
    assert len(hidden) == 4 and hidden[1][0].shape[-1] == demo.model.config.text_config.hidden_size and hidden[1][0].ndim == 2
    assert not {"cache", "past_key_values"} & set(alone["generation"])


def test_pipeline_generate_outputs_of_beams_have_a_row_for_each_beam(demo, questions):
    generation = demo(questions[1], num_beams=2, output_scores=True, max_new_tokens=3)["generation"]
    assert [len(step) for step in generation["scores"]] == [2] * 3 and generation["sequences"].ndim == 1
