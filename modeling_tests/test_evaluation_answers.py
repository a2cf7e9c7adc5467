# SPDX-License-Identifier: Apache-2.0
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llava_st_hf.evaluation.answers import ANSWER_PARSERS, ParseContext
from llava_st_hf.evaluation.rows import GroundingResult
from llava_st_hf.model.grounding_llava_st import MediaInfo
from llava_st_hf.model.tasks_llava_st import TASKS


IMAGE = MediaInfo("image", width=200, height=100)
# A clip of 10 s from frame 10 to frame 110: 0.1 s is one frame and 1/100 of the clip.
VIDEO = MediaInfo("video", width=200, height=100, fps=10.0, first_frame=10, last_frame=110)
NO_RATE = MediaInfo("video", width=200, height=100, first_frame=10, last_frame=110)
NOTHING = GroundingResult()
# Aligned to the bins of LLaVA-ST: bin k is frame 10 + k, 10·k pixels in x and 5·k pixels in y.
CLIP = MediaInfo("video", width=990, height=495, fps=10.0, first_frame=10, last_frame=109)
PHOTO = MediaInfo("image", width=990, height=495)
TOKENS = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
PIXELS = (100.0, 100.0, 300.0, 200.0)


def read(reader: str, text: str, task: str, media: MediaInfo | None = None, **more) -> tuple[GroundingResult, list[str]]:
    media = media or (IMAGE if TASKS[task].medium == "image" else VIDEO)
    return ANSWER_PARSERS[reader](text, ParseContext(task, media, **{"num_frames": 100, **more}))


def near(found: GroundingResult, wanted: GroundingResult) -> bool:
    """Compares two results up to float rounding."""

    def flat(result: GroundingResult) -> list:
        tubelet = [value for frame, box in (result.tubelet or {}).items() for value in (frame, *box)]
        return [*(result.span or ()), *(result.box or ()), *tubelet]

    return found.caption == wanted.caption and flat(found) == pytest.approx(flat(wanted)) and shape(found) == shape(wanted)


def shape(result: GroundingResult) -> list:
    return [result.span is None, result.box is None, None if result.tubelet is None else list(result.tubelet)]


def check(reader, task, text, wanted, note, **more):
    found, notes = read(reader, text, task, **more)
    assert near(found, wanted), found
    assert (notes == []) if note is None else any(note in one for one in notes), notes


# LLaVA-ST


@pytest.mark.parametrize(
    "task, text, wanted, note",
    [
        ("rec", TOKENS, GroundingResult(box=PIXELS), None),
        ("rec", f"The dog {TOKENS}.", GroundingResult(box=PIXELS), None),
        ("rec", "[<WIDTH-030><HEIGHT-020><WIDTH-010><HEIGHT-040>]", GroundingResult(box=PIXELS), "reversed"),
        ("rec", "[<WIDTH-010><HEIGHT-020><WIDTH-030>", NOTHING, "ends within a box"),
        ("rec", "I see a dog.", NOTHING, "no box"),
        ("rec", "", NOTHING, "no box"),
        ("tvg", "{<TEMP-010><TEMP-020>}", GroundingResult(span=(10 / 99, 20 / 99)), None),
        ("tvg", "From <TEMP-010> to <TEMP-020>.", GroundingResult(span=(10 / 99, 20 / 99)), None),
        ("tvg", "{<TEMP-020><TEMP-010>}", GroundingResult(span=(10 / 99, 20 / 99)), "reversed"),
        ("tvg", "{<TEMP-010>", NOTHING, "ends within a span"),
        ("tvg", "{<TEMP-000><TEMP-999>}", GroundingResult(span=(0.0, 1.0)), "not a token of this model"),
        (
            "stvg",
            f"During {{<TEMP-010><TEMP-011>}}. Object bounding box: <TEMP-010>:{TOKENS}<TEMP-011>:{TOKENS}.",
            GroundingResult(span=(10 / 99, 11 / 99), tubelet={20: PIXELS, 21: PIXELS}),
            None,
        ),
        (
            "stvg",
            f"<TEMP-010>:{TOKENS}<TEMP-012>:{TOKENS}",
            GroundingResult(span=(10 / 99, 12 / 99), tubelet={20: PIXELS, 22: PIXELS}),
            None,
        ),
        (
            "stvg",
            f"During {{<TEMP-010><TEMP-040>}}. Object bounding box: <TEMP-010>:{TOKENS}<TEMP-011>:[<WIDTH-0",
            GroundingResult(span=(10 / 99, 40 / 99), tubelet={20: PIXELS}),
            "ends within",
        ),
        ("stvg", f"During {{<TEMP-010><TEMP-040>}}. {TOKENS}", GroundingResult(span=(10 / 99, 40 / 99)), "without a time"),
        ("svg", f"Object bounding box: <TEMP-099>:{TOKENS}.", GroundingResult(tubelet={109: PIXELS}), None),
        ("svg", "{<TEMP-010><TEMP-020>}", NOTHING, "no tubelet"),
    ],
)  # fmt: skip
def test_read_llava_st_answer_gives_expected_result_and_note(task, text, wanted, note):
    check("llava_st", task, text, wanted, note, media=PHOTO if task == "rec" else CLIP)


@pytest.mark.parametrize(
    "text, wanted, note",
    [
        (f"Ends in <TEMP-050>, a dog barks. Object bounding box: <TEMP-010>:{TOKENS}.", ((0.1, 50 / 99), "a dog barks"), None),
        (f"Ends in {{<TEMP-015><TEMP-050>}}, a dog barks. <TEMP-010>:{TOKENS}.", ((0.1, 50 / 99), "a dog barks"), None),
        (f"Ends in <TEMP-005>, a dog barks. Object bounding box: <TEMP-010>:{TOKENS}.", (None, "a dog barks"), "before the start"),
        (f"A dog barks. Object bounding box: <TEMP-010>:{TOKENS}<TEMP-012>:{TOKENS}.", ((0.1, 12 / 99), "A dog barks"), None),
    ],
)
def test_read_llava_st_elc_uses_the_start_of_the_prompt(text, wanted, note):
    found, notes = read("llava_st", text, "elc", CLIP, prompt_values=GroundingResult(span=(0.1, 0.1), box=PIXELS))
    assert (found.span, found.caption) == wanted and found.tubelet[20] == PIXELS
    assert (notes == []) if note is None else note in notes[0]


def test_read_llava_st_elc_ignores_the_box_of_the_prompt():
    found, notes = read("llava_st", "A dog barks.", "elc", CLIP, prompt_values=GroundingResult(span=(0.1, 0.1), box=PIXELS))
    assert found.tubelet is None and "no span and no tubelet" in notes[-1]


def test_read_llava_st_positions_do_not_depend_on_frame_rate_or_length():
    for media in (NO_RATE, MediaInfo("video", 200, 100, fps=25.0, last_frame=3), MediaInfo("video", 200, 100, fps=1.0, last_frame=10**6)):
        assert read("llava_st", "{<TEMP-033><TEMP-066>}", "tvg", media)[0].span == (33 / 99, 66 / 99)


def test_read_llava_st_uses_the_numbers_of_bins_of_the_context():
    bins = {"num_temporal_bins": 11, "num_spatial_bins": 5}
    assert read("llava_st", "{<TEMP-001><TEMP-010>}", "tvg", **bins)[0].span == (0.1, 1.0)
    assert read("llava_st", "[<WIDTH-001><HEIGHT-001><WIDTH-004><HEIGHT-002>]", "rec", **bins)[0].box == (50.0, 25.0, 200.0, 50.0)


# Qwen


def fenced(value) -> str:
    return f"```json\n{json.dumps(value, indent=1)}\n```"


TRACK = [{"time": 1.0, "bbox_2d": [100, 200, 500, 600], "label": "dog"}, {"time": 1.5, "bbox_2d": [200, 200, 600, 600], "label": "dog"}]
FIRST, SECOND = (20.0, 20.0, 100.0, 60.0), (40.0, 20.0, 120.0, 60.0)
BOX_3 = GroundingResult(box=FIRST)


@pytest.mark.parametrize(
    "task, text, wanted, note",
    [
        ("rec", fenced([{"bbox_2d": [100, 200, 500, 600], "label": "dog"}]), BOX_3, None),
        ("rec", '{"bbox_2d": [100, 200, 500, 600]}', BOX_3, None),
        ("rec", 'Here it is: {"bbox_2d": ["100", "200", "500", "600"]} as asked.', BOX_3, None),
        ("rec", fenced({"objects": [{"bbox": [100, 200, 500, 600]}]}), BOX_3, None),
        ("rec", fenced([{"bbox_2d": [[100, 200, 500, 600]]}]), BOX_3, None),
        ("rec", "[100, 200, 500, 600]", BOX_3, None),
        ("rec", "<|box_start|>(100,200),(500,600)<|box_end|>", BOX_3, None),
        ("rec", "The box is 100, 200, 500, 600.", BOX_3, None),
        ("rec", fenced([{"bbox_2d": [500, 600, 100, 200]}]), BOX_3, "reversed"),
        ("rec", fenced([{"bbox_2d": [-5, 200, 1200, 600]}]), GroundingResult(box=(0.0, 20.0, 200.0, 60.0)), None),
        ("rec", fenced([{"bbox_2d": [1200, 200, 1300, 600]}]), NOTHING, "outside the image"),
        ("rec", fenced([{"bbox_2d": [100, 200, 500, 600]}, {"bbox_2d": [0, 0, 1, 1]}]), BOX_3, "2 boxes"),
        ("rec", '```json\n[{"bbox_2d": [100, 200, 500, 600], "label": "dog"}, {"bbox_2d": [1', BOX_3, "cut off"),
        ("rec", '[{"bbox_2d": [100, 200, 500, 600], "label": "do', BOX_3, "cut off"),
        ("rec", '[{"bbox_2d": [100, 200, 500', NOTHING, "cut off"),
        ("rec", fenced([{"bbox_2d": [100, 200, 500]}]), NOTHING, "no box"),
        ("rec", fenced([{"bbox_2d": [100, 200, 500, None]}]), NOTHING, "no box"),
        ("rec", '{"bbox_2d": [NaN, 200, 500, 600]}', NOTHING, "no box"),
        ("rec", f'{{"bbox_2d": [1e999, 200, 500, {"9" * 400}]}}', NOTHING, "no box"),
        ("rec", "There is no dog.", NOTHING, "no box"),
        ("tvg", fenced({"start": "00:01.50", "end": "00:03.00"}), GroundingResult(span=(0.15, 0.3)), None),
        ("tvg", fenced([{"start_time": 1.5, "end_time": "3.0 s"}]), GroundingResult(span=(0.15, 0.3)), None),
        ("tvg", '{"timestamps": [1.5, 3]}', GroundingResult(span=(0.15, 0.3)), None),
        ("tvg", '{"timestamp": "00:01 - 00:03"}', GroundingResult(span=(0.1, 0.3)), None),
        ("tvg", "[1.5, 3.0]", GroundingResult(span=(0.15, 0.3)), None),
        ("tvg", "[[1.5, 3.0], [4, 5]]", GroundingResult(span=(0.15, 0.3)), "2 spans"),
        ("tvg", '{"start": "00:01", "end": "00:03", "even', GroundingResult(span=(0.1, 0.3)), "cut off"),
        ("tvg", '{"start": "00:01", "end": "00:0', NOTHING, "cut off"),
        ("tvg", '{"start": 1, "end": 3', NOTHING, "cut off"),
        ("tvg", "The event happens from 1.5 to 3 seconds.", GroundingResult(span=(0.15, 0.3)), None),
        ("tvg", '{"point_2d": [1, 2]}', NOTHING, "no span"),
        ("stvg", fenced(TRACK), GroundingResult(span=(0.1, 0.15), tubelet={20: FIRST, 25: SECOND}), None),
        (
            "stvg",
            fenced({"start": "00:01", "end": "00:02", "boxes": TRACK}),
            GroundingResult(span=(0.1, 0.2), tubelet={20: FIRST, 25: SECOND}),
            None,
        ),
        ("stvg", fenced(TRACK)[:-30], GroundingResult(span=(0.1, 0.1), tubelet={20: FIRST}), "cut off"),
        ("stvg", f"From 00:01 to 00:02. {json.dumps(TRACK)}", GroundingResult(span=(0.1, 0.2), tubelet={20: FIRST, 25: SECOND}), None),
        ("svg", fenced(TRACK), GroundingResult(tubelet={20: FIRST, 25: SECOND}), None),
        ("svg", fenced([{"bbox_2d": [1, 2, 3, 4]}]), NOTHING, "without a time"),
        ("svg", fenced([{**TRACK[0], "time": 99}]), GroundingResult(tubelet={110: FIRST}), "outside the clip"),
        (
            "elc",
            fenced({"start": 1, "end": 2, "caption": "a dog barks", "boxes": TRACK[:1]}),
            GroundingResult(span=(0.1, 0.2), tubelet={20: FIRST}, caption="a dog barks"),
            None,
        ),
    ],
)  # fmt: skip
def test_read_json_qwen3_vl_answer_gives_expected_result_and_note(task, text, wanted, note):
    check("qwen3_vl", task, text, wanted, note)


def test_read_json_qwen2_5_vl_boxes_are_pixels_of_seen_size():
    text = fenced([{"bbox_2d": [28, 14, 140, 56], "label": "dog"}])
    assert read("qwen2_5_vl", text, "rec")[0].box == (28.0, 14.0, 140.0, 56.0)
    assert read("qwen2_5_vl", text, "rec", seen_size=(280, 140))[0].box == pytest.approx((20.0, 10.0, 100.0, 40.0))
    track = fenced([{"time": "00:01", "bbox_2d": [28, 14, 140, 56]}])
    found, notes = read("qwen2_5_vl", track, "svg", seen_size=(280, 140))
    assert found.tubelet[20] == pytest.approx((20.0, 10.0, 100.0, 40.0)) and notes == []


# Molmo2


def tracks(coords: str, name: str = "tracks", end: str = '">dog</tracks>') -> str:
    return f'<{name} coords="{coords}{end}'


POINT_1, POINT_2 = (127.0, 52.2) * 2, (121.2, 49.0) * 2
MOVING = {10: POINT_1, 15: POINT_2}


@pytest.mark.parametrize(
    "task, text, wanted, note",
    [
        ("svg", tracks("0.0 1 635 522;0.5 1 606 490"), GroundingResult(tubelet=MOVING), "without area"),
        ("stvg", tracks("0.0 1 635 522;0.5 1 606 490"), GroundingResult(span=(0.0, 0.05), tubelet=MOVING), "without area"),
        ("svg", tracks("0.0 1 635 522;0.5 1 606 490 2 511 124"), GroundingResult(tubelet=MOVING), "2 objects"),
        ("svg", tracks("0.0 1 635 522;0.5 1 6", end=""), GroundingResult(tubelet={10: POINT_1}), "ends within a list"),
        ("svg", tracks("0.0 1 635 522;oops;0.5 1 606 490"), GroundingResult(tubelet=MOVING), "not a valid list"),
        ("svg", "<tracks>dog</tracks>", NOTHING, "no tubelet"),
        ("svg", tracks(""), NOTHING, "no tubelet"),
        ("rec", tracks("1 1 635 522", "points", '"/>'), GroundingResult(box=POINT_1), "without area"),
        ("rec", "The dog is on the left.", NOTHING, "no box"),
    ],
)
def test_read_molmo2_answer_gives_expected_result_and_note(task, text, wanted, note):
    check("molmo2", task, text, wanted, note)


# Seconds


@pytest.mark.parametrize(
    "text, span, note",
    [
        ("From 1.5 to 3 seconds.", (0.15, 0.3), None),
        ("1.5 - 3", (0.15, 0.3), None),
        ("1.5s – 3.0s", (0.15, 0.3), None),
        ("It happens between 00:01 and 00:05.", (0.1, 0.5), None),
        ("<1.0> to <5.0>", (0.1, 0.5), None),
        ("0:00:01.5-0:00:05", (0.15, 0.5), None),
        ("The event starts at 1 second and ends at 5 seconds.", (0.1, 0.5), None),
        ("Start time: 00:01, end time: 00:05", (0.1, 0.5), None),
        ("2 and 3 people are there from 4 to 5 seconds", (0.4, 0.5), "2 spans"),
        ("1 - 2 s, then 3 - 4 s", (0.1, 0.2), "2 spans"),
        ("5 - 1 s", (0.1, 0.5), "reversed"),
        ("5 - 20 seconds", (0.5, 1.0), "outside the clip"),
        ("From 1.5 to", None, "no span"),
        ("00:01", None, "no span"),
        ("at 12:34:56:78 - 3:4", None, "no span"),
        ("I do not know.", None, "no span"),
        ("", None, "no span"),
    ],
)
def test_read_seconds_answer_gives_expected_span_and_note(text, span, note):
    check("seconds", "tvg", text, GroundingResult(span=span), note)


# All answer parsers


@pytest.mark.parametrize("reader", ANSWER_PARSERS)
def test_answer_parsers_without_media_or_frame_rate_give_a_note(reader):
    text = f"From 1 to 2 seconds. {fenced(TRACK)} {tracks('0.0 1 635 522')}"
    found, notes = ANSWER_PARSERS[reader](text, ParseContext("stvg", None, num_frames=100))
    assert found == NOTHING and any("unknown" in note for note in notes)
    if reader != "llava_st":
        found, notes = ANSWER_PARSERS[reader](text, ParseContext("stvg", NO_RATE, num_frames=100))
        assert found == NOTHING and any("frame rate" in note for note in notes)


def test_read_json_boxes_are_assigned_to_the_nearest_sampled_frames():
    clip = MediaInfo("video", width=1000, height=1000, fps=30.0, last_frame=990)  # each bin is ten frames
    track = [{"time": frame / 30, "bbox_2d": [frame, 0, 999, 999]} for frame in (96, 99, 103, 206, 990)]
    found, _ = read("qwen3_vl", json.dumps(track), "stvg", clip)
    assert {frame: box[0] for frame, box in found.tubelet.items()} == pytest.approx({100: 99, 210: 206, 990: 990})
    assert found.span == pytest.approx((96 / 990, 1.0))  # the times in the answer


def test_read_seconds_variable_frame_rate_counts_from_the_first_frame():
    media = MediaInfo("video", 200, 100, fps=2.0, last_frame=2, frame_times=(5.0, 6.0, 9.0), end_time=10.0)
    assert read("seconds", "1 - 4 s", "tvg", media)[0].span == (0.5, 1.0)


PIECES = [
    *"{}[]\":,<>;.-() \n\t0123456789٣",
    "bbox_2d",
    '"bbox_2d": ',
    '{"time": 1.0, ',
    '"start": "00:0',
    "1e999",
    "NaN",
    "-1",
    "null",
    "true",
    '<tracks coords="',
    "0.5 1 606 490",
    "<TEMP-010>",
    "<WIDTH-099>",
    "<HEIGHT-1",
    "Ends in ",
    "From 1 to ",
    "00:01 - ",
    "```json\n",
    TOKENS,
    json.dumps(TRACK),
]  # fmt: skip
CONTEXTS = [
    ParseContext(task, media, GroundingResult(span=(0.2, 0.2), box=PIXELS), num_frames=100, seen_size=seen)
    for task in ("rec", "reg", "dgc", "tvg", "tr", "stvg", "svg", "elc")
    for media in (None, IMAGE, VIDEO, NO_RATE)
    for seen in (None, (28, 56))
]


@pytest.mark.parametrize("reader", ANSWER_PARSERS)
@settings(max_examples=200)
@given(text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)), context=st.sampled_from(CONTEXTS))
@example(
    text=json.dumps({"time": 1e308, "bbox_2d": [1e308, -1e308, 1e308, 1e308]}),
    context=ParseContext("svg", VIDEO, num_frames=100, seen_size=(1, 1)),
)
def test_answer_parsers_any_text_never_raises(reader, text, context):
    found, notes = ANSWER_PARSERS[reader](text, context)
    assert isinstance(found, GroundingResult) and all(isinstance(note, str) for note in notes)
    assert notes or found != NOTHING
    assert GroundingResult.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    if found.span is not None:
        assert 0 <= found.span[0] <= found.span[1] <= 1
    boxes = [*([found.box] if found.box else []), *(found.tubelet or {}).values(), *(box for _, box in found.objects or ())]
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 <= x2 <= context.media.width and 0 <= y1 <= y2 <= context.media.height


def test_answer_parsers_tubelet_without_num_frames_raises():
    with pytest.raises(ValueError, match=r"num_frames is missing.*'svg'"):
        ANSWER_PARSERS["llava_st"](f"<TEMP-010>:{TOKENS}", ParseContext("svg", CLIP))


@pytest.mark.parametrize("task, media", [("tr", VIDEO), ("reg", IMAGE)])
def test_read_llava_st_text_only_is_a_caption(task, media):
    found, notes = ANSWER_PARSERS["llava_st"]("A dog runs.", ParseContext(task, media))
    assert found == GroundingResult(caption="A dog runs") and not notes
    assert ANSWER_PARSERS["llava_st"]("", ParseContext(task, media))[0] == GroundingResult()


@pytest.mark.parametrize(
    "piece", ["[", "{", '{"a":', "[1,", "1", "1 ", "1:", "start ", "from 1", '["', "(1,", '<tracks coords="1 ', "<points "]
)
@pytest.mark.parametrize("reader", ANSWER_PARSERS)
def test_answer_parsers_repeated_piece_is_parsed_within_two_seconds(reader, piece):
    text = piece * (20_000 // len(piece))
    for task in ("rec", "stvg"):
        begin = time.process_time()
        read(reader, text, task)
        assert time.process_time() - begin < 2


def test_parse_context_given_is_accepted_as_prompt_values_with_a_warning():
    values = GroundingResult(span=(0.2, 0.2))
    with pytest.warns(FutureWarning, match="given of ParseContext is now prompt_values"):
        context = ParseContext("elc", VIDEO, given=values)
    assert context == ParseContext("elc", VIDEO, prompt_values=values)
    with pytest.warns(FutureWarning, match=r"ParseContext\.given is now prompt_values"):
        assert context.given == values
