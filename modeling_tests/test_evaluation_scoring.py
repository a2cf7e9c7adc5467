# SPDX-License-Identifier: Apache-2.0
"""Metrics of a benchmark: equality with the original program on reference rows, and differences of the default protocol."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.evaluation.original_protocol import ORIGINAL_TASKS, from_original_row, score_original, to_original_row
from llava_st_hf.evaluation.published import MODEL, PUBLISHED, PUBLISHED_OTHERS, SOURCE
from llava_st_hf.evaluation.rows import GROUNDING_FIELDS, GroundingResult, Prediction
from llava_st_hf.evaluation.scoring import score
from modeling_tests.reference import REFERENCE


METRICS = REFERENCE / "metrics"
VIDEO = {"kind": "video", "width": 100, "height": 100, "last_frame": 99}
PICTURE = {"kind": "image", "width": 1000, "height": 500}
SPAN = GroundingResult(span=(20 / 99, 60 / 99))
TUBELET = dict.fromkeys(range(20, 30), (10.0, 10.0, 50.0, 50.0))


def read(name: str):
    return json.loads((METRICS / f"{name}.json").read_text())


def asked(task: str, truth: GroundingResult, answer: str = "", said: GroundingResult | None = None, **fields) -> Prediction:
    media = PICTURE if task in ("rec", "reg") else VIDEO
    fields = {"num_frames": 100, **fields}
    return Prediction("one", "b", task, "?", truth, media=media, answer=answer, prediction=said or GroundingResult(), **fields)


def both(*rows: Prediction) -> tuple[dict, dict]:
    """Metrics under the default and the original protocol."""
    return score(rows[0].task, rows), score(rows[0].task, rows, "original")


def without_captions(rows: list[dict], task: str) -> str:
    """Removes captions of elc samples, whose metrics need Java (see test_evaluation_captions.py); returns the task to score."""
    for row in rows:
        if task == "elc":
            row["gt"].pop("caption")
    return "stvg" if task == "elc" else task


# Parity


@pytest.mark.parametrize("task", ORIGINAL_TASKS)
def test_score_original_equals_the_reference(task):
    rows, expected = read(task), read("expected_metrics")[task]
    expected.pop("caption_score", None)
    found = score_original(without_captions(rows, task), rows)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", ORIGINAL_TASKS)
def test_original_rows_converted_twice_have_the_same_metrics(task):
    rows = read(task)
    task = without_captions(rows, task)
    written = [to_original_row(from_original_row(task, row, "x")) for row in rows]
    assert score_original(task, written) == score_original(task, rows)


@pytest.mark.parametrize("task", ["rec", "tvg", "stvg", "svg"])
@pytest.mark.parametrize("protocol", ["default", "original"])
def test_score_rows_predictions_and_dicts_have_the_same_metrics(task, protocol):
    rows = read(task)
    objects = [from_original_row(task, row, str(number)) for number, row in enumerate(rows)]
    dicts = [json.loads(json.dumps(row.to_dict())) for row in objects]
    scores = score(task, rows, protocol)
    assert scores == score(task, objects, protocol) == score(task, iter(dicts), protocol)
    assert scores["count"] == len(rows)
    assert all(math.isfinite(value) for value in scores.values())


def test_original_protocol_parses_answers_as_the_original_program():
    for case in read("text_and_sampling")["parsing"]:
        media = {"kind": "video", "width": 99, "height": 99, "last_frame": 99}
        truth = GroundingResult(span=(0.0, 1.0), tubelet={0: (0, 0, 1, 1)})
        row = to_original_row(Prediction("one", "b", "stvg", "?", truth, media=media, answer=case["text"], num_frames=100))
        assert row["converted_outputs"] == case["normalized"]
        said = from_original_row("stvg", row, "x").prediction
        assert {str(float(frame)): list(box) for frame, box in (said.tubelet or {}).items()} == case["tubelet_bins"]
        if case["span"] != [0, 0]:
            assert said.span == pytest.approx(case["span"], abs=1e-5)


def test_published_metrics_equal_the_source():
    published = read("../published")
    assert published["model"] == MODEL and "arXiv:2501.08282" in published["source"] and "arXiv:2501.08282" in SOURCE

    def ours(scores: dict) -> dict:
        means = ("m_tiou", "m_siou", "miou", "METEOR")
        return {key.replace("R@", "R1@"): value / 100 if key in means else value for key, value in scores.items()}

    expected = {f"st_align_{task}": ours(published[task]) for task in ("stvg", "elc", "svg")}
    expected["charades_sta"] = ours(published["charades_sta"])
    for family in ("refcoco", "refcoco+", "refcocog"):
        expected |= {f"{family}_{split}": {"R1@0.5": figure} for split, figure in published[family].items()}
    assert {name: pytest.approx(scores) for name, scores in expected.items()} == PUBLISHED
    others = {
        model: {f"st_align_{task}": pytest.approx(ours(scores)) for task, scores in tasks.items()}
        for model, tasks in published["others_on_st_align"].items()
    }
    assert others == PUBLISHED_OTHERS


# Known bugs of the original program, one by one


def test_score_rec_without_a_box_is_excluded_by_the_original_protocol():
    truth = GroundingResult(box=(0, 0, 500, 500))
    right = asked("rec", truth, "[<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-099>]", GroundingResult(box=(0, 0, 500, 500)))
    default, original = both(right, asked("rec", truth, "Sorry."))
    assert default["R1@0.5"] == 50.0 and original["R1@0.5"] == 100.0
    assert default["unparsable"] == original["unparsable"] == 1 and default["count"] == original["count"] == 2


def test_score_tvg_at_the_threshold_passes_by_default_only():
    truth = GroundingResult(span=(0.0, 1.0))
    row = asked("tvg", truth, "{0.0,0.5}", GroundingResult(span=(0.0, 0.5)))
    default, original = both(row)
    assert default["miou"] == original["miou"] == 0.5
    assert default["R1@0.5"] == 100.0 and original["R1@0.5"] == 0.0


def test_score_elc_with_only_an_end_starts_at_the_prompt():
    truth = replace(SPAN, tubelet=TUBELET)
    given = GroundingResult(span=(20 / 99, 20 / 99))
    row = to_original_row(asked("stvg", truth, "Ends in <TEMP-060>, a dog."))
    row["gt"]["caption"] = "a dog"
    assert from_original_row("elc", row, "x").prediction.span == SPAN.span
    assert score_original("stvg", [row])["mtiou"] == 0.0
    # The start of a prediction may also be None.
    said = GroundingResult(span=(None, 60 / 99), tubelet=TUBELET, caption="a dog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava_st_hf.evaluation.captions.missing_caption_tools", lambda: "no captions here")
        with pytest.warns(UserWarning, match="no captions here"):
            scores = score("elc", [asked("elc", replace(truth, caption="a dog"), "…", said, given=given)])
    assert scores["m_tiou"] == 1.0


def test_score_boxes_are_rounded_by_the_original_protocol_only():
    truth = GroundingResult(tubelet={0: (10.101, 10.101, 10.4, 10.4)})
    answer = "<TEMP-000>:[<WIDTH-010><HEIGHT-010><WIDTH-010><HEIGHT-010>]"
    default, original = both(asked("svg", truth, answer, truth))
    assert default["m_siou"] == 1.0 and original["msiou"] == 0.0


def test_score_spans_are_rounded_by_the_original_protocol_only():
    media = VIDEO | {"last_frame": 999}
    truth = GroundingResult(span=(100 / 999, 200 / 999), tubelet={101: (0, 0, 9, 9)})
    row = asked("stvg", truth, "{0.1001001001001001,0.2002002002002002}", truth)
    row.media = media
    default, original = both(row)
    assert default["m_tiou"] == 1.0 and 0.99 < original["mtiou"] < 0.999


def test_score_svg_has_a_tiou_in_the_original_protocol_only():
    default, original = both(asked("svg", GroundingResult(tubelet=TUBELET), "", GroundingResult(tubelet=TUBELET)))
    assert "m_tiou" not in default and original["mtiou"] == original["tiou@0.3"] == 0.0


def test_score_reversed_boxes_are_swapped_by_default_only():
    truth = GroundingResult(tubelet={10: (100 / 99 * 10, 100 / 99 * 10, 100 / 99 * 50, 100 / 99 * 50)})
    row = to_original_row(asked("svg", truth, "<TEMP-010>:[<WIDTH-050><HEIGHT-050><WIDTH-010><HEIGHT-010>]"))
    assert score("svg", [row])["m_siou"] == pytest.approx(1.0)
    assert score("svg", [row], "original")["msiou"] == 0.0


def test_score_viou_counts_all_frames_and_siou_shared_ones():
    said = GroundingResult(tubelet={20: TUBELET[20]})
    default, original = both(
        asked("svg", GroundingResult(tubelet=TUBELET), "<TEMP-020>:[<WIDTH-010><HEIGHT-010><WIDTH-050><HEIGHT-050>]", said)
    )
    assert default["m_siou"] == 1.0 and default["m_viou"] == pytest.approx(0.1)
    assert original["msiou"] > 0.9 and original["mstiou"] == pytest.approx(original["msiou"] / 10)


def test_score_skipped_and_cut_off_samples_are_counted():
    truth = replace(SPAN, tubelet=TUBELET)
    right = asked("stvg", truth, "{0.20202,0.60606}", truth)
    skipped = replace(right, media=None, answer=None, prediction=GroundingResult(), skipped="no such file")
    cut_off = replace(right, finished=False)
    default, original = both(right, skipped, cut_off, right)
    assert default["m_tiou"] == 0.75  # the parsed part of a cut-off answer counts
    assert original["mtiou"] == pytest.approx(1.0, abs=2e-3)
    for scores in (default, original):
        assert (scores["count"], scores["skipped"], scores["cut_off"], scores["unparsable"]) == (4, 1, 1, 0)
    assert both(skipped)[1]["mtiou"] == 0.0


def test_score_original_last_box_of_a_frame_counts():
    truth = GroundingResult(tubelet={0: (0, 0, 50, 50)})
    boxes = "<TEMP-{}>:[<WIDTH-000><HEIGHT-000><WIDTH-{}><HEIGHT-{}>]"
    row = asked("svg", truth, boxes.format("000", "010", "010") + boxes.format("001", "050", "050"), truth)
    row.media = VIDEO | {"last_frame": 9}  # bins 0 and 1 are the same frame
    assert score("svg", [row], "original")["msiou"] > 0.9


def test_score_original_unevenly_skipped_frames_count_within_the_clip():
    frames = tuple(range(0, 50)) + tuple(range(100, 150))
    truth = GroundingResult(tubelet={120: (10.0, 10.0, 50.0, 50.0)})
    row = asked("svg", truth, "<TEMP-070>:[<WIDTH-010><HEIGHT-010><WIDTH-050><HEIGHT-050>]", truth)
    row.media = VIDEO | {"last_frame": 149, "frames": frames}
    assert score("svg", [row], "original")["mstiou"] > 0.9


# Results


def test_score_returns_the_documented_names():
    rec = score("rec", [asked("rec", GroundingResult(box=(0, 0, 1, 1)))])
    assert set(rec) == {
        *("count", "skipped", "cut_off", "unparsable"),
        *(f"{name}{bound}" for name in ("miou", "R1@0.5") for bound in ("", "_low", "_high")),
    }
    stvg = score("stvg", [asked("stvg", replace(SPAN, tubelet=TUBELET))], "original")
    recalls = {f"{name}@{threshold}" for name in ("tiou", "siou", "viou") for threshold in (0.3, 0.5, 0.7)}
    assert set(stvg) == recalls | {"mtiou", "msiou", "mstiou", "count", "skipped", "cut_off", "unparsable"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)) | st.none(), min_size=1, max_size=20))
def test_score_counts_every_sample_and_intervals_contain_the_metric(spans):
    rows = [asked("tvg", SPAN, "…", GroundingResult(span=span)) for span in spans]
    scores = score("tvg", rows)
    assert scores["count"] == len(rows) and scores["unparsable"] == spans.count(None)
    for name in ("miou", "R1@0.3", "R1@0.5", "R1@0.7"):
        assert scores[f"{name}_low"] - 1e-9 <= scores[name] <= scores[f"{name}_high"] + 1e-9


@pytest.mark.parametrize(
    "task, answer, truth", [("tvg", "{0.1,0.2}", SPAN), ("tvg", "{3,9}", SPAN), ("rec", "[0,0,0.5,1]", GroundingResult(box=(0, 0, 1, 1)))]
)
def test_score_numbers_instead_of_tokens_are_unparsable(task, answer, truth):
    assert score(task, [to_original_row(asked(task, truth, answer))])["unparsable"] == 1


@given(st.text(alphabet="<>TEMPWIDTHHEIGHT-0123456789{}[],.: ", max_size=200))
def test_score_any_answer_gives_finite_metrics(answer):
    truth = replace(SPAN, tubelet=TUBELET, box=(0, 0, 1, 1))
    for task in ("rec", "tvg", "stvg", "svg"):
        row = to_original_row(asked(task, truth, answer))
        for protocol in ("default", "original"):
            assert all(math.isfinite(value) for value in score(task, [row], protocol).values())


# Bad input


@pytest.mark.parametrize(
    "task, protocol, message",
    [
        ("dgc", "default", "'dgc'"),
        ("dgc", "original", "'dgc'"),
        ("nonsense", "default", "'nonsense' has no metrics"),
        ("tr", "original", "under the original protocol"),
        ("rec", "strict", "protocol='strict' is unknown"),
    ],
)
def test_score_unknown_task_or_protocol_raises(task, protocol, message):
    with pytest.raises(ValueError, match=message):
        score(task, [], protocol)


@pytest.mark.parametrize("task", GROUNDING_FIELDS)
def test_score_without_samples_raises(task):
    with pytest.raises(ValueError, match="no samples"):
        score(task, [])


@pytest.mark.parametrize("protocol", ["default", "original"])
@pytest.mark.parametrize(
    "row, message",
    [
        (asked("stvg", SPAN), "'one' cannot be scored for 'stvg': its ground truth has no tubelet"),
        (asked("stvg", GroundingResult(tubelet={})), "no span and no tubelet"),
        (asked("tvg", SPAN), "'one' is of the task 'tvg', not 'stvg'"),
        (3, "Row 1 must be a prediction or a dict"),
        ({"id": "one"}, "Row 1 is not a valid prediction"),
        ({"id": "one", "strange": 1}, "Row 1 is not a valid prediction"),
        ({"outputs": "{0.1,0.2}"}, "row 1 is not a valid row of the original program"),
        ({"outputs": 3, "split": [0, 9], "width": 1, "height": 1, "gt": {}}, "row 1 is not a valid row"),
    ],
)
def test_score_invalid_row_is_named(row, message, protocol):
    with pytest.raises(ValueError, match=message):
        score("stvg", [row], protocol)


@pytest.mark.parametrize(
    "said", [GroundingResult(span=(0.1, 0.2, 0.3)), GroundingResult(span=("a", "b")), GroundingResult(tubelet={0: (1, 2)})]
)
def test_score_malformed_prediction_is_named(said):
    with pytest.raises(ValueError, match="'one' is malformed"):
        score("stvg", [asked("stvg", replace(SPAN, tubelet=TUBELET), "…", said)])


def test_score_original_unsupported_row_raises():
    row = asked("tvg", SPAN, "From 20 to 60 seconds.", SPAN, reader="seconds")
    assert score("tvg", [row])["miou"] == 1.0
    with pytest.raises(ValueError, match="'one' was read by 'seconds', and the original program reads coordinate tokens only"):
        score("tvg", [row], "original")
    with pytest.raises(ValueError, match="'tr' is not scored"):
        score_original("tr", [])
    with pytest.raises(ValueError, match="Row 1 is not a valid row"):
        score_original("stvg", [{"outputs": ""}])
    skipped = replace(asked("tvg", SPAN), media=None, skipped="no such file")
    with pytest.raises(ValueError, match="was skipped, and the original program has no row for it: no such file"):
        to_original_row(skipped)


def test_score_protocol_released_equals_original():
    row = asked("tvg", SPAN, "{0.20202,0.60606}", SPAN)
    assert score("tvg", [row], "released") == score("tvg", [row], "original")


def test_scores_old_metric_name_returns_the_new_one_with_a_warning():
    truth = replace(SPAN, tubelet=TUBELET)
    scores = score("stvg", [asked("stvg", truth, "…", truth)])
    for old, new in {"mtiou": "m_tiou", "msiou_low": "m_siou_low", "mstiou_high": "m_viou_high"}.items():
        with pytest.warns(FutureWarning, match=f"'{old}' is now '{new}'"):
            assert scores[old] == scores[new] == 1.0
        assert old not in scores
    for name in ("nonsense", "named@0.5", "tiou", "mtiou_mean"):
        with pytest.raises(KeyError, match=name):
            scores[name]


def test_score_original_protocol_keeps_the_names_of_the_original_program():
    truth = replace(SPAN, tubelet=TUBELET)
    scores = score("stvg", [asked("stvg", truth, "…", truth)], "original")
    assert {"mtiou", "msiou", "mstiou"} < scores.keys() and not {"m_tiou", "m_siou", "m_viou"} & scores.keys()


def test_score_skipped_sample_with_a_prediction_scores_zero():
    right = asked("tvg", SPAN, "…", SPAN)
    scores = score("tvg", [right, replace(right, skipped="no such file")])
    assert scores["miou"] == 0.5 and scores["R1@0.7"] == 50.0 and scores["skipped"] == 1


def test_to_original_row_box_has_three_digits():
    row = to_original_row(asked("rec", GroundingResult(box=(1000 / 3, 500 / 7, 2000 / 3, 450.0)), ""))
    assert row["gt_bbox"] == [0.333, 0.143, 0.667, 0.9]
