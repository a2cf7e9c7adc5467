# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_st_hf.data.json_rows import BrokenFileError
from llava_st_hf.data.samples import GroundingSample
from llava_st_hf.evaluation.answers import ANSWER_PARSERS, ParseContext
from llava_st_hf.evaluation.benchmarks import BENCHMARKS, read_benchmark
from llava_st_hf.evaluation.ground_truth import to_clip_coordinates
from llava_st_hf.evaluation.questions import choose_template
from llava_st_hf.evaluation.rows import GroundingResult, Question
from llava_st_hf.evaluation.st_align import _filled, elc_questions
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS
from llava_st_hf.model.grounding_llava_st import MediaInfo
from llava_st_hf.model.tasks_llava_st import ANSWER_INSTRUCTIONS, REC_PROMPTS, TASKS, TIME_PREFIXES
from llava_st_hf.model.video_sampling_llava_st import sample_frame_indices
from modeling_tests import miniatures
from modeling_tests.miniatures import MINIATURES, box_at, corners, media_of, write_json
from modeling_tests.reference import REFERENCE, cases
from modeling_tests.test_data_fuzz import damaged as damaged_anyhow


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, tuple[str, str]]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in MINIATURES.items()}


@pytest.fixture(scope="module")
def questions(written) -> dict[str, list[Question]]:
    return {name: read_benchmark(name, *paths) for name, paths in written.items()}


def changed(written, name: str, tmp_path: Path, change) -> tuple[str, str]:
    """A copy of a miniature's annotation file after `change(content)`."""
    annotations, media = written[name]
    content = json.loads(Path(annotations).read_text())
    content = change(content) or content
    return write_json(tmp_path / "changed.json", content), media


# Reading annotations


@pytest.mark.parametrize("name", MINIATURES)
def test_read_benchmark_each_format_reads_its_miniature(questions, written, name):
    found = questions[name]
    assert len(found) == {"refcoco_val": 8, "charades_sta": 4}.get(name, 3)
    for question in found:
        assert question.task == BENCHMARKS[name].task and question.kind == TASKS[question.task].medium
        assert Path(question.path).is_file() and question.path.startswith(written[name][1])
        assert GroundingResult.from_dict(json.loads(json.dumps(question.truth.to_dict()))) == question.truth


def test_every_benchmark_has_a_miniature_of_its_format():
    without = {name for name in BENCHMARKS if BENCHMARKS[name].questions not in {BENCHMARKS[made].questions for made in MINIATURES}}
    assert without == {"jsonl"}  # test_evaluation_jsonl.py has one per task


def test_benchmarks_contain_the_eight_refcoco_splits():
    assert sum(benchmark.task == "rec" for benchmark in BENCHMARKS.values()) == 8


# Prompts


def test_read_benchmark_refcoco_prompts_use_the_training_templates(questions):
    used = set()
    for question in questions["refcoco_val"]:
        (wording,) = [prompt for prompt in REC_PROMPTS if prompt.replace("{text}", f"thing {question.id}") == question.prompt]
        used.add(wording)
    assert len(used) > 1


def test_read_benchmark_charades_sta_query_is_lowercase_without_full_stop(questions):
    assert questions["charades_sta"][0].prompt == (
        "Give you a textual query: 'person opens the door'. When does the described content occur in the video? "
        "Please return the start and end timestamps."
    )


@pytest.mark.parametrize("name", ["vidstg_declarative", "vidstg_interrogative", "hc_stvg_v1", "hc_stvg_v2"])
def test_read_benchmark_stvg_prompts_end_with_the_training_instruction(questions, name):
    assert all(question.prompt.endswith(f" {ANSWER_INSTRUCTIONS['stvg']}") for question in questions[name])


def test_read_benchmark_vidstg_separates_declarative_and_interrogative_sentences(questions):
    assert all("the dog of" in question.prompt for question in questions["vidstg_declarative"])
    assert all("what runs in" in question.prompt for question in questions["vidstg_interrogative"])


def test_prompt_templates_equal_those_of_the_original_code():
    recorded = json.loads((REFERENCE / "prompts.json").read_text())
    assert [prompt.replace("{text}", "<event>") for prompt in REC_PROMPTS] == recorded["rec"] and list(TIME_PREFIXES) == recorded[
        "st_align_time_prefixes"
    ]
    assert recorded["st_align_suffixes"] == ANSWER_INSTRUCTIONS
    assert recorded["tvg"] == [TASKS["tvg"].prompt.replace("{text}", "<event>")]


def test_read_benchmark_st_align_prompts_contain_exact_positions(questions):
    stvg, svg, elc = (questions[f"st_align_{task}"][2].prompt for task in ("stvg", "svg", "elc"))
    start, end = 17 / 219, 171 / 219
    assert stvg == f"The dog runs after the ball. {ANSWER_INSTRUCTIONS['stvg']}"
    prefix = next(prefix for prefix in TIME_PREFIXES if svg.startswith(f"{prefix}  {{"))
    assert svg == f"{prefix}  {{<t{start!r}><t{end!r}>}} , where is the dog that runs? {ANSWER_INSTRUCTIONS['svg']}"
    x1, y1, x2, y2 = corners(box_at(47))
    box = f"<w{x1 / 64!r}><h{y1 / 48!r}><w{x2 / 64!r}><h{y2 / 48!r}>"
    asked = f" Starts in <t{start!r}> , what happened about the subject/object within the specified region  [{box}]? "
    assert elc == f"{asked}{ANSWER_INSTRUCTIONS['elc']}"


def test_st_align_filled_prompt_equals_that_of_the_original_code():
    (case,) = [case for case in cases("inference") if case["style"] == "benchmark"]
    asked = re.sub(r"\[[\d., ]+\]", "<bbox>", case["query"].replace("Starts in 0.79", "Starts in <s>"))
    asked = re.sub(r"\{[\d.]+,[\d.]+\}", "{<s>,<e>}", asked)
    box = "<WIDTH-INPUT><HEIGHT-INPUT>" * 2
    filled = _filled(asked, {"<s>": "<TEMP-INPUT>", "<e>": "<TEMP-INPUT>", "<bbox>": box}, "At")
    assert f"<video>\n{filled}" == f"{case['prompt_with_placeholders']} "


@pytest.mark.parametrize("name", ["refcoco_val", "st_align_svg"])
def test_read_benchmark_prompts_depend_on_the_seed_only(written, name):
    paths = written[name]
    prompts = {question.id: question.prompt for question in read_benchmark(name, *paths, seed=3)}
    assert prompts == {question.id: question.prompt for question in read_benchmark(name, *paths, seed=3)}
    others = [{question.id: question.prompt for question in read_benchmark(name, *paths, seed=seed)} for seed in range(4, 9)]
    assert any(other != prompts for other in others)


def test_read_benchmark_prompts_do_not_depend_on_the_order_of_the_file(written, tmp_path):
    def reverse(content):
        return {key: rows[::-1][:5] for key, rows in content.items()}

    prompts = {question.id: question.prompt for question in read_benchmark("refcoco_val", *written["refcoco_val"])}
    found = read_benchmark("refcoco_val", *changed(written, "refcoco_val", tmp_path, reverse))
    assert [question.id for question in found] == ["7", "6", "5", "4", "3"]
    assert all(prompts[question.id] == question.prompt for question in found)


def test_choose_template_selects_templates_about_equally_often():
    counts = [sum(choose_template(REC_PROMPTS, 0, str(id)) == prompt for id in range(2000)) for prompt in REC_PROMPTS]
    assert sum(counts) == 2000 and min(counts) > 400


# Ground truth


def test_read_benchmark_refcoco_boxes_and_charades_sta_spans_equal_the_annotations(questions):
    assert [question.truth.box for question in questions["refcoco_val"]] == [corners(box_at(3 * id)) for id in range(8)]
    assert [question.truth.span for question in questions["charades_sta"]] == [(0.125, 0.5), (0.0, 0.3333), (0.75, 1.0), (0.4, 0.45)]


@pytest.mark.parametrize("name", [name for name in MINIATURES if name.startswith(("st_align", "vidstg", "hc_stvg"))])
def test_to_clip_coordinates_clip_ground_truth_has_the_exact_frames(questions, name):
    converted = [miniatures.in_clip(question) for question in questions[name]]
    for question, (_, num_frames, clip, (start, end)) in zip(converted, miniatures.CLIPS, strict=True):
        first, last = (0, num_frames - 1) if name.startswith("hc_stvg") else clip
        assert question.frames == (first, last) and question.size == (64, 48)
        assert question.clip == (None if name.startswith("hc_stvg") else clip)
        seen = [frame for frame in range(start, end + 1) if frame in set(sample_frame_indices(first, last, 100))]
        assert list(question.truth.tubelet) == seen
        assert all(box == pytest.approx(corners(box_at(frame))) for frame, box in question.truth.tubelet.items())
        if name != "st_align_svg":
            assert question.truth.span == pytest.approx(((start - first) / (last - first), (end - first) / (last - first)), abs=1e-12)


def test_read_benchmark_svg_and_elc_list_the_values_given_in_the_prompt(questions):
    (svg, elc), clip = (questions[f"st_align_{task}"][0] for task in ("svg", "elc")), 39
    assert svg.given == GroundingResult(span=(8 / clip, 30 / clip)) and svg.truth.span is None
    assert elc.given == GroundingResult(span=(8 / clip, 8 / clip), box=corners(box_at(8)))
    assert elc.truth.caption == "the dog runs after the ball" and elc.truth.span == (8 / clip, 30 / clip)
    assert all(question.given == GroundingResult() for question in questions["st_align_stvg"])


def question_of(**sample) -> Question:
    fields = {"id": "a", "kind": "video", "path": "a.mp4", "unit": "fraction", "width": 64, "height": 48}
    return Question("a", "svg", "/a.mp4", "video", "?", GroundingResult(), sample=GroundingSample(**{**fields, **sample}))


def test_to_clip_coordinates_event_between_sampled_frames_keeps_its_middle_box():
    boxes = tuple((frame / 9900, (float(frame), 0.0, 1.0, 1.0)) for frame in range(1012, 1015))
    question = to_clip_coordinates(question_of(boxes=boxes, num_frames=9901), MediaInfo("video", 64, 48, last_frame=9900), 100)
    assert question.truth.tubelet == {1000: (1013.0, 0.0, 1.0, 1.0)}


def test_to_clip_coordinates_frame_without_an_annotated_box_gets_none():
    boxes = tuple((frame / 100, (0.0, 0.0, 1.0, 1.0)) for frame in (24, 26, 50))
    question = to_clip_coordinates(question_of(boxes=boxes, num_frames=101), MediaInfo("video", 64, 48, last_frame=100), 5)
    assert list(question.truth.tubelet) == [50]  # sampled: 0, 25, 50, 75 and 100; the object is hidden in frame 25


def test_to_clip_coordinates_other_resolution_and_frame_rate_scales_boxes_and_frames():
    boxes = tuple((frame / 100, (1.0, 2.0, 3.0, 4.0)) for frame in range(25, 51))
    question = to_clip_coordinates(question_of(boxes=boxes, num_frames=101), MediaInfo("video", 128, 144, last_frame=200), 5)
    assert question.truth.tubelet == {50: (2.0, 6.0, 6.0, 12.0), 100: (2.0, 6.0, 6.0, 12.0)}


def test_to_clip_coordinates_video_with_missing_frames_has_boxes_at_existing_frames():
    boxes = tuple((frame / 100, (float(frame), 0.0, 3.0, 4.0)) for frame in range(101))
    media = MediaInfo("video", 64, 48, last_frame=100, frames=(0, 10, 30, 70, 100))
    question = to_clip_coordinates(question_of(boxes=boxes, num_frames=101), media, 3)
    assert question.truth.tubelet == {frame: (float(frame), 0.0, 3.0, 4.0) for frame in (0, 30, 100)}
    with pytest.raises(ValueError, match="None of the 1 frames with annotated boxes is among the 5 frames"):
        to_clip_coordinates(question_of(boxes=boxes[1:2], num_frames=101), media, 3)


def test_to_clip_coordinates_with_another_num_frames_is_an_error(questions):
    for name in ("st_align_svg", "charades_sta"):
        question, media = questions[name][0], media_of(questions[name][0])
        converted = to_clip_coordinates(question, media, 20)
        assert to_clip_coordinates(converted, media, 20) is converted
        with pytest.raises(ValueError, match="at 20 sampled frames, not at num_frames=100"):
            to_clip_coordinates(converted, media, 100)


# Oracle answers and the answer parser of LLaVA-ST


def iou(found, true) -> float:
    """IoU of two boxes, or of two spans as boxes of height 1."""
    a, b = ((x[0], 0.0, x[1], 1.0) if len(x) == 2 else x for x in (found, true))
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def bound(*lengths: float) -> float:
    """Lower bound of the IoU if each end of a segment of length `lengths` (fraction of its axis) has a bin error of at most 1/2."""
    least = 1.0
    for length in lengths:
        least *= 1 - 1.01 / (DEFAULT_NUM_BINS - 1) / length  # 0.01 for the rounding of pixels
    return least


def asked(question: Question) -> ParseContext:
    return ParseContext(question.task, media_of(question), question.given, num_frames=100)


@pytest.mark.parametrize("name", MINIATURES)
def test_llava_st_parser_oracle_answer_equals_the_ground_truth_up_to_bin_error(questions, name):
    for question in questions[name]:
        said, notes = ANSWER_PARSERS["llava_st"](miniatures.oracle(question), asked(question))
        truth = miniatures.in_clip(question).truth
        assert notes == [] and said.caption == truth.caption
        assert (said.span is None, said.box is None, said.tubelet is None) == (truth.span is None, truth.box is None, truth.tubelet is None)
        if truth.span is not None:
            assert iou(said.span, truth.span) >= bound(truth.span[1] - truth.span[0])
        pairs = [(said.box, truth.box)] if truth.box else []
        if truth.tubelet is not None:
            assert list(said.tubelet) == list(truth.tubelet)
            pairs += [(said.tubelet[frame], box) for frame, box in truth.tubelet.items()]
        for found, (x1, y1, x2, y2) in pairs:
            assert iou(found, (x1, y1, x2, y2)) >= bound((x2 - x1) / 64, (y2 - y1) / 48)


@pytest.mark.parametrize("name", MINIATURES)
def test_llava_st_parser_shifted_oracle_answer_gives_shifted_results(questions, name):
    for question in questions[name]:
        reader = ANSWER_PARSERS["llava_st"]
        right, shifted = (reader(miniatures.shifted_oracle(question, bins), asked(question))[0] for bins in (0, 5))
        assert right != shifted
        if right.box is not None:
            assert shifted.box[0] - right.box[0] == pytest.approx(5 / 99 * 64, abs=0.02)
        if right.span is not None and question.task != "elc":
            assert shifted.span[0] - right.span[0] == pytest.approx(5 / 99)
        if question.task == "elc":
            assert shifted.span[0] == right.span[0] == question.given.span[0]


@pytest.mark.parametrize("name", MINIATURES)
def test_llava_st_parser_empty_answer_gives_an_empty_result_and_a_note(questions, name):
    for question in questions[name]:
        said, notes = ANSWER_PARSERS["llava_st"](miniatures.empty_oracle(question), asked(question))
        assert said == GroundingResult() and notes


# Invalid annotations


def damaged(key: str, value):
    def change(content):
        holder, keys = content, key.split("/")
        for part in keys[:-1]:
            holder = holder[int(part) if isinstance(holder, list) else part]
        holder[int(keys[-1]) if isinstance(holder, list) else keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "name, change, row, reason",
    [
        ("refcoco_val", damaged("images/1/id", 77), 2, "id 77"),
        ("refcoco_val", damaged("images/2/file_name", "../a.png"), 3, "'..'"),
        ("refcoco_val", damaged("images/2/caption", "the <video> dog"), 3, "'<video>'"),
        ("charades_sta", damaged("1/timestamp", [0.5, 0.1]), 2, "before the start"),
        ("charades_sta", damaged("0/caption", " . "), 1, "must contain a sentence"),
        ("charades_sta", damaged("3/image_id", "/etc/passwd"), 4, "absolute"),
        ("st_align_stvg", damaged("1/video_path", "a/../../b.mp4"), 2, "'..'"),
        ("st_align_stvg", damaged("1/video_path", None), 2, "'video_path' must be a string"),
        ("st_align_stvg", damaged("2/meta/split", [30, 20]), 3, "reversed"),
        ("st_align_stvg", damaged("2/meta/time_token/<e>", 300), 3, "not within the clip"),
        ("st_align_stvg", damaged("0/meta/spatial_token/<bboxes>", {}), 1, "no box within the clip"),
        ("st_align_stvg", damaged("0/meta/spatial_token/<bboxes>", {"x": [1, 2, 3, 4]}), 1, "must have frame numbers as keys"),
        ("st_align_stvg", damaged("0/meta/spatial_token/<bboxes>/9", [1, 2, 0, 4]), 1, "'meta.spatial_token.<bboxes>.9' must have a width"),
        ("st_align_stvg", damaged("1/conversations", [{"value": "x"}]), 2, "'conversations' must have at least 2 items"),
        ("st_align_elc", damaged("1/meta/spatial_token/<bbox>", [99, 2, 3, 4]), 2, "outside the image"),
        ("st_align_elc", damaged("1/meta/spatial_token/<bbox>", None), 2, "'meta.spatial_token.<bbox>' must be a list, not None."),
        ("vidstg_declarative", damaged("1/vid", "999"), 2, "no <group>/999.json"),
        ("hc_stvg_v1", damaged("even.mp4/st_frame", 0), 2, "'st_frame'"),
    ],
)  # fmt: skip
def test_read_benchmark_malformed_row_raises_with_file_and_row(written, tmp_path, name, change, row, reason):
    if name.startswith("vidstg"):
        (tmp_path / "boxes").symlink_to(Path(written[name][0]).parent / "boxes")
    annotations, media = changed(written, name, tmp_path, change)
    with pytest.raises(BrokenFileError, match=re.escape(f"{annotations}, row {row}: ")) as error:
        read_benchmark(name, annotations, media)
    assert reason in str(error.value)


@pytest.mark.parametrize("name, other", [("st_align_stvg", "svg"), ("st_align_svg", "elc"), ("st_align_elc", "stvg")])
def test_read_benchmark_st_align_file_of_another_task_raises(written, name, other):
    with pytest.raises(BrokenFileError, match=f"row 1: The question is one of '{other}'"):
        read_benchmark(name, *written[f"st_align_{other}"])


@pytest.mark.parametrize(
    "asked, reason",
    [
        ("<s> and <bboxes>?", "not valid for stvg, svg or elc"),
        ("Starts in <s>?", "not valid for stvg, svg or elc"),
        ("From <s> to <e> <bbox>", "not valid for stvg, svg or elc"),
    ],
)
def test_read_benchmark_st_align_tokens_of_no_valid_task_raise(written, tmp_path, asked, reason):
    paths = changed(written, "st_align_svg", tmp_path, damaged("0/conversations", [{"value": asked}, {"value": "x"}]))
    with pytest.raises(BrokenFileError, match=reason):
        read_benchmark("st_align_svg", *paths)


@pytest.mark.parametrize(
    "answer, caption",
    [
        ("Ends in <e>, a dog barks. Object bounding box: <bboxes>", "a dog barks"),
        ("Ends in <e>, a dog, in the yard, barks. Object bounding box: <bboxes>.", "a dog, in the yard, barks"),
        ("Ends in {<e>}, a dog barks", "a dog barks"),
        ("Ends in <e>, Object bounding box: <bboxes>.", None),
        ("It ends in <e>.", None),
    ],
)
def test_read_benchmark_elc_caption_is_extracted_from_the_answer(written, tmp_path, answer, caption):
    paths = changed(written, "st_align_elc", tmp_path, damaged("0/conversations/1", {"value": answer}))
    if caption is None:
        with pytest.raises(BrokenFileError, match="row 1: The answer must be 'Ends in"):
            read_benchmark("st_align_elc", *paths)
    else:
        assert read_benchmark("st_align_elc", *paths)[0].truth.caption == caption


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_elc_questions_damaged_row_gives_a_question_or_an_error(written, tmp_path, data):
    """ST-Align only; the other formats have fuzz tests in test_data_fuzz.py."""
    rows = json.loads(Path(written["st_align_elc"][0]).read_text())[:1]
    rows[0]["meta"]["spatial_token"]["<bboxes>"] = {"8": [1, 2, 3, 4], "9": [1, 2, 3, 4]}
    path = write_json(tmp_path / "rows.json", data.draw(damaged_anyhow(rows)))
    try:
        found = list(elc_questions(path, "/media", 0))
    except BrokenFileError:
        return  # the file no longer contains a list
    assert all(isinstance(question, Question) or (isinstance(question, str) and question) for _, question in found)


def test_read_benchmark_reads_all_2001_rows(written, tmp_path):
    found = read_benchmark("st_align_stvg", *changed(written, "st_align_stvg", tmp_path, lambda rows: [rows[0]] * 2001))
    assert len(found) == 2001


def test_read_benchmark_duplicate_ids_and_empty_files_raise(written, tmp_path):
    def double(content):
        return {key: rows * 2 for key, rows in content.items()}

    with pytest.raises(BrokenFileError, match=r"row 9: The id '0' is also that of row 1"):
        read_benchmark("refcoco_val", *changed(written, "refcoco_val", tmp_path, double))
    with pytest.raises(BrokenFileError, match=r"changed\.json: The file has no samples of charades_sta"):
        read_benchmark("charades_sta", write_json(tmp_path / "changed.json", []), "media")
    with pytest.raises(BrokenFileError, match="no samples of refcoco_val"):
        read_benchmark("refcoco_val", write_json(tmp_path / "changed.json", {"images": [], "annotations": []}), "media")
    with pytest.raises(BrokenFileError, match="no samples of hc_stvg_v1"):
        read_benchmark("hc_stvg_v1", write_json(tmp_path / "changed.json", {}), "media")


def test_read_benchmark_unknown_name_raises():
    with pytest.raises(ValueError, match="'refcoco' is not a valid benchmark; it must be one of refcoco_val, "):
        read_benchmark("refcoco", "a.json", "media")


def test_read_benchmark_missing_media_files_do_not_raise(written, tmp_path):
    annotations, _ = written["charades_sta"]
    found = read_benchmark("charades_sta", annotations, str(tmp_path / "nowhere"))
    assert found[0].path == str(tmp_path / "nowhere" / "AAAAA.mp4")
