# SPDX-License-Identifier: Apache-2.0
"""Figures of a benchmark: what the released program says of the reference rows, and how the default protocol differs."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf.evaluation.published import MODEL, PUBLISHED, PUBLISHED_OTHERS, SOURCE
from llava_st_hf.evaluation.released_protocol import RELEASED_TASKS, released_prediction, released_row, score_released
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
    return Prediction("one", "b", task, "?", truth, media=media, answer=answer, prediction=said or GroundingResult(), **fields)


def both(*rows: Prediction) -> tuple[dict, dict]:
    """Figures under the default and the released protocol."""
    return score(rows[0].task, rows), score(rows[0].task, rows, "released")


def without_captions(rows: list[dict], task: str) -> str:
    """Captions take Java and seconds; `test_evaluation_captions.py` has them."""
    for row in rows:
        if task == "elc":
            row["gt"].pop("caption")
    return "stvg" if task == "elc" else task


# Parity


@pytest.mark.parametrize("task", RELEASED_TASKS)
def test_released_figures_of_the_reference(task):
    rows, expected = read(task), read("expected_metrics")[task]
    expected.pop("caption_score", None)
    found = score_released(without_captions(rows, task), rows)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", RELEASED_TASKS)
def test_rows_read_and_written_again_have_the_same_figures(task):
    rows = read(task)
    task = without_captions(rows, task)
    written = [released_row(released_prediction(task, row, "x")) for row in rows]
    assert score_released(task, written) == score_released(task, rows)


@pytest.mark.parametrize("task", ["rec", "tvg", "stvg", "svg"])
@pytest.mark.parametrize("protocol", ["default", "released"])
def test_rows_objects_and_dicts_have_the_same_figures(task, protocol):
    rows = read(task)
    objects = [released_prediction(task, row, str(number)) for number, row in enumerate(rows)]
    dicts = [json.loads(json.dumps(row.to_dict())) for row in objects]
    figures = score(task, rows, protocol)
    assert figures == score(task, objects, protocol) == score(task, iter(dicts), protocol)
    assert figures["count"] == len(rows)
    assert all(math.isfinite(figure) for figure in figures.values())


def test_answers_are_read_as_the_released_program_reads_them():
    for case in read("text_and_sampling")["parsing"]:
        media = {"kind": "video", "width": 99, "height": 99, "last_frame": 99}
        truth = GroundingResult(span=(0.0, 1.0), tubelet={0: (0, 0, 1, 1)})
        row = released_row(Prediction("one", "b", "stvg", "?", truth, media=media, answer=case["text"]))
        assert row["converted_outputs"] == case["normalized"]
        said = released_prediction("stvg", row, "x").prediction
        assert {str(float(frame)): list(box) for frame, box in (said.tubelet or {}).items()} == case["tubelet_bins"]
        if case["span"] != [0, 0]:
            assert said.span == pytest.approx(case["span"], abs=1e-5)


def test_published_figures():
    published = read("../published")
    assert published["model"] == MODEL and published["source"] == SOURCE

    def ours(figures: dict) -> dict:
        means = ("m_tiou", "m_siou", "miou", "METEOR")
        return {key.replace("m_", "m").replace("R@", "R1@"): value / 100 if key in means else value for key, value in figures.items()}

    expected = {f"st_align_{task}": ours(published[task]) for task in ("stvg", "elc", "svg")}
    expected["charades_sta"] = ours(published["charades_sta"])
    for family in ("refcoco", "refcoco+", "refcocog"):
        expected |= {f"{family}_{split}": {"R1@0.5": figure} for split, figure in published[family].items()}
    assert {name: pytest.approx(figures) for name, figures in expected.items()} == PUBLISHED
    others = {
        model: {f"st_align_{task}": pytest.approx(ours(figures)) for task, figures in tasks.items()}
        for model, tasks in published["others_on_st_align"].items()
    }
    assert others == PUBLISHED_OTHERS


# The traps, one by one: default against released


def test_rec_answers_without_a_box():
    truth = GroundingResult(box=(0, 0, 500, 500))
    right = asked("rec", truth, "[<WIDTH-000><HEIGHT-000><WIDTH-050><HEIGHT-099>]", GroundingResult(box=(0, 0, 500, 500)))
    default, released = both(right, asked("rec", truth, "Sorry."))
    assert default["R1@0.5"] == 50.0 and released["R1@0.5"] == 100.0
    assert default["unparsable"] == released["unparsable"] == 1 and default["count"] == released["count"] == 2


def test_tvg_at_the_threshold():
    truth = GroundingResult(span=(0.0, 1.0))
    row = asked("tvg", truth, "{0.0,0.5}", GroundingResult(span=(0.0, 0.5)))
    default, released = both(row)
    assert default["miou"] == released["miou"] == 0.5
    assert default["R1@0.5"] == 100.0 and released["R1@0.5"] == 0.0


def test_elc_with_an_end_alone():
    truth = replace(SPAN, tubelet=TUBELET)
    given = GroundingResult(span=(20 / 99, 20 / 99))
    row = released_row(asked("stvg", truth, "Ends in <TEMP-060>, a dog."))
    row["gt"]["caption"] = "a dog"
    assert released_prediction("elc", row, "x").prediction.span == SPAN.span
    assert score_released("stvg", [row])["mtiou"] == 0.0
    # A prediction may leave the start open as well.
    said = GroundingResult(span=(None, 60 / 99), tubelet=TUBELET, caption="a dog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava_st_hf.evaluation.scoring.missing_caption_tools", lambda: "no captions here")
        with pytest.warns(UserWarning, match="no captions here"):
            figures = score("elc", [asked("elc", replace(truth, caption="a dog"), "…", said, given=given)])
    assert figures["mtiou"] == 1.0


def test_boxes_are_rounded_in_the_released_protocol_alone():
    truth = GroundingResult(tubelet={0: (10.101, 10.101, 10.4, 10.4)})
    answer = "<TEMP-000>:[<WIDTH-010><HEIGHT-010><WIDTH-010><HEIGHT-010>]"
    default, released = both(asked("svg", truth, answer, truth))
    assert default["msiou"] == 1.0 and released["msiou"] == 0.0


def test_true_spans_are_rounded_in_the_released_protocol_alone():
    media = VIDEO | {"last_frame": 999}
    truth = GroundingResult(span=(100 / 999, 200 / 999), tubelet={101: (0, 0, 9, 9)})
    row = asked("stvg", truth, "{0.1001001001001001,0.2002002002002002}", truth)
    row.media = media
    default, released = both(row)
    assert default["mtiou"] == 1.0 and 0.99 < released["mtiou"] < 0.999


def test_svg_has_no_tiou_but_in_the_released_protocol():
    default, released = both(asked("svg", GroundingResult(tubelet=TUBELET), "", GroundingResult(tubelet=TUBELET)))
    assert "mtiou" not in default and released["mtiou"] == released["tiou@0.3"] == 0.0


def test_reversed_boxes_of_released_rows_are_put_in_order():
    truth = GroundingResult(tubelet={10: (100 / 99 * 10, 100 / 99 * 10, 100 / 99 * 50, 100 / 99 * 50)})
    row = released_row(asked("svg", truth, "<TEMP-010>:[<WIDTH-050><HEIGHT-050><WIDTH-010><HEIGHT-010>]"))
    assert score("svg", [row])["msiou"] == pytest.approx(1.0)
    assert score("svg", [row], "released")["msiou"] == 0.0


def test_shared_frames_and_all_frames():
    said = GroundingResult(tubelet={20: TUBELET[20]})
    default, released = both(
        asked("svg", GroundingResult(tubelet=TUBELET), "<TEMP-020>:[<WIDTH-010><HEIGHT-010><WIDTH-050><HEIGHT-050>]", said)
    )
    assert default["msiou"] == 1.0 and default["mstiou"] == pytest.approx(0.1)
    assert released["msiou"] > 0.9 and released["mstiou"] == pytest.approx(released["msiou"] / 10)


def test_skipped_and_cut_off_samples():
    truth = replace(SPAN, tubelet=TUBELET)
    right = asked("stvg", truth, "{0.20202,0.60606}", truth)
    skipped = replace(right, media=None, answer=None, prediction=GroundingResult(), skipped="no such file")
    cut_off = replace(right, finished=False)
    default, released = both(right, skipped, cut_off, right)
    assert default["mtiou"] == 0.75  # of a cut-off answer, what it says counts
    assert released["mtiou"] == pytest.approx(1.0, abs=2e-3)
    for figures in (default, released):
        assert (figures["count"], figures["skipped"], figures["cut_off"], figures["unparsable"]) == (4, 1, 1, 0)
    assert both(skipped)[1]["mtiou"] == 0.0


def test_what_is_said_last_of_a_frame_counts():
    truth = GroundingResult(tubelet={0: (0, 0, 50, 50)})
    boxes = "<TEMP-{}>:[<WIDTH-000><HEIGHT-000><WIDTH-{}><HEIGHT-{}>]"
    row = asked("svg", truth, boxes.format("000", "010", "010") + boxes.format("001", "050", "050"), truth)
    row.media = VIDEO | {"last_frame": 9}  # bins 0 and 1 are the same frame
    assert score("svg", [row], "released")["msiou"] > 0.9


def test_frames_left_out_unevenly_are_counted_within_the_clip():
    frames = tuple(range(0, 50)) + tuple(range(100, 150))
    truth = GroundingResult(tubelet={120: (10.0, 10.0, 50.0, 50.0)})
    row = asked("svg", truth, "<TEMP-070>:[<WIDTH-010><HEIGHT-010><WIDTH-050><HEIGHT-050>]", truth)
    row.media = VIDEO | {"last_frame": 149, "frames": frames}
    assert score("svg", [row], "released")["mstiou"] > 0.9


# What comes out


def test_names():
    rec = score("rec", [asked("rec", GroundingResult(box=(0, 0, 1, 1)))])
    assert set(rec) == {
        *("count", "skipped", "cut_off", "unparsable"),
        *(f"{name}{bound}" for name in ("miou", "R1@0.5") for bound in ("", "_low", "_high")),
    }
    stvg = score("stvg", [asked("stvg", replace(SPAN, tubelet=TUBELET))], "released")
    recalls = {f"{name}@{threshold}" for name in ("tiou", "siou", "viou") for threshold in (0.3, 0.5, 0.7)}
    assert set(stvg) == recalls | {"mtiou", "msiou", "mstiou", "count", "skipped", "cut_off", "unparsable"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)) | st.none(), min_size=1, max_size=20))
def test_every_sample_counts_and_intervals_hold_the_figure(spans):
    rows = [asked("tvg", SPAN, "…", GroundingResult(span=span)) for span in spans]
    figures = score("tvg", rows)
    assert figures["count"] == len(rows) and figures["unparsable"] == spans.count(None)
    for name in ("miou", "R1@0.3", "R1@0.5", "R1@0.7"):
        assert figures[f"{name}_low"] - 1e-9 <= figures[name] <= figures[f"{name}_high"] + 1e-9


@pytest.mark.parametrize(
    "task, answer, truth", [("tvg", "{0.1,0.2}", SPAN), ("tvg", "{3,9}", SPAN), ("rec", "[0,0,0.5,1]", GroundingResult(box=(0, 0, 1, 1)))]
)
def test_numbers_written_out_are_no_tokens(task, answer, truth):
    assert score(task, [released_row(asked(task, truth, answer))])["unparsable"] == 1


@given(st.text(alphabet="<>TEMPWIDTHHEIGHT-0123456789{}[],.: ", max_size=200))
def test_no_answer_breaks_scoring(answer):
    truth = replace(SPAN, tubelet=TUBELET, box=(0, 0, 1, 1))
    for task in ("rec", "tvg", "stvg", "svg"):
        row = released_row(asked(task, truth, answer))
        for protocol in ("default", "released"):
            assert all(math.isfinite(figure) for figure in score(task, [row], protocol).values())


# Bad input


@pytest.mark.parametrize(
    "task, protocol, message",
    [
        ("dgc", "default", "'dgc'"),
        ("dgc", "released", "'dgc'"),
        ("nonsense", "default", "'nonsense' has no figures"),
        ("tr", "released", "under the released protocol"),
        ("rec", "strict", "protocol='strict' is unknown"),
    ],
)
def test_unknown_tasks_and_protocols(task, protocol, message):
    with pytest.raises(ValueError, match=message):
        score(task, [], protocol)


@pytest.mark.parametrize("task", GROUNDING_FIELDS)
def test_no_rows(task):
    with pytest.raises(ValueError, match="no rows"):
        score(task, [])


@pytest.mark.parametrize("protocol", ["default", "released"])
@pytest.mark.parametrize(
    "row, message",
    [
        (asked("stvg", SPAN), "'one' cannot be scored for 'stvg': it has no true tubelet"),
        (asked("stvg", GroundingResult(tubelet={})), "no true span and tubelet"),
        (asked("tvg", SPAN), "'one' is of the task 'tvg', not 'stvg'"),
        (3, "Row 1 is neither"),
        ({"id": "one"}, "Row 1 is no prediction"),
        ({"id": "one", "strange": 1}, "Row 1 is no prediction"),
        ({"outputs": "{0.1,0.2}"}, "row 1 is no row of the released program"),
        ({"outputs": 3, "split": [0, 9], "width": 1, "height": 1, "gt": {}}, "row 1 is no row"),
    ],
)
def test_rows_that_cannot_be_scored(row, message, protocol):
    with pytest.raises(ValueError, match=message):
        score("stvg", [row], protocol)


@pytest.mark.parametrize(
    "said", [GroundingResult(span=(0.1, 0.2, 0.3)), GroundingResult(span=("a", "b")), GroundingResult(tubelet={0: (1, 2)})]
)
def test_malformed_predictions_are_named(said):
    with pytest.raises(ValueError, match="'one' is malformed"):
        score("stvg", [asked("stvg", replace(SPAN, tubelet=TUBELET), "…", said)])


def test_released_figures_of_other_rows():
    row = asked("tvg", SPAN, "From 20 to 60 seconds.", SPAN, reader="seconds")
    assert score("tvg", [row])["miou"] == 1.0
    with pytest.raises(ValueError, match="'one' was read by 'seconds', and the released program reads coordinate tokens alone"):
        score("tvg", [row], "released")
    with pytest.raises(ValueError, match="not 'tr'"):
        score_released("tr", [])
    with pytest.raises(ValueError, match="Row 1 is no row"):
        score_released("stvg", [{"outputs": ""}])
    skipped = replace(asked("tvg", SPAN), media=None, skipped="no such file")
    with pytest.raises(ValueError, match="was skipped, and the released program has no row for it: no such file"):
        released_row(skipped)
