# SPDX-License-Identifier: Apache-2.0
"""Evaluation on JSON Lines samples: eight tasks on a few encoded videos and images, from annotation files to scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llava_st_hf.cli import main as llava_st
from llava_st_hf.data.json_rows import BrokenFileError
from llava_st_hf.data.samples import GroundingSample
from llava_st_hf.evaluation import (
    ANSWER_PARSERS,
    GroundingResult,
    ParseContext,
    Prediction,
    Question,
    read_benchmark,
    read_predictions,
    score,
)
from llava_st_hf.evaluation import captions as captions_module
from llava_st_hf.evaluation.ground_truth import boxes_at_nearest_frames, sparse_boxes_at_sampled_frames, to_clip_coordinates
from llava_st_hf.evaluation.phrases import normalize_text, object_ious
from llava_st_hf.evaluation.predictions import append_predictions
from llava_st_hf.evaluation.rows import Box
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS, coordinate_token, position_to_bin
from llava_st_hf.model.grounding_llava_st import MediaInfo
from llava_st_hf.model.image_processing_llava_st import load_image
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.model.video_decoding_llava_st import open_video_file
from llava_st_hf.model.video_sampling_llava_st import sample_frame_indices
from llava_st_hf.shapes.files import write_questions
from modeling_tests.media import moving_frames, write_video
from modeling_tests.miniatures import write_json
from modeling_tests.processors import model_for, tiny_processor


IMAGE_TASKS = ("rec", "reg", "dgc")
# Metrics of which an oracle reaches 100, and means, which quantization reduces a little.
SHARES = {"rec": ["R1@0.5"], "tvg": ["R1@0.5"], "stvg": ["tiou@0.5", "viou@0.5"], "svg": ["siou@0.5", "viou@0.5"]}
SHARES |= {"elc": ["tiou@0.5", "viou@0.5", "exact_match"], "tr": ["exact_match"], "reg": ["exact_match"], "dgc": ["object_recall@0.5"]}
MEANS = {"rec": ["miou"], "tvg": ["miou"], "stvg": ["m_tiou", "m_viou"], "svg": ["m_viou"], "elc": ["m_tiou", "m_viou"], "dgc": ["miou"]}


@pytest.fixture(autouse=True)
def no_caption_tools(monkeypatch):
    """Simulates a machine without Java, which no test here needs."""
    monkeypatch.setattr(captions_module, "missing_caption_tools", lambda: "Captions are not scored: there is no Java.")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> dict[int, Path]:
    """`{num_frames: folder}` of three samples per task, with boxes at the sampled frames (20 or 100) within the event."""
    folders = {}
    for num_frames in (20, 100):
        folders[num_frames] = tmp_path_factory.mktemp(f"shapes{num_frames}")
        write_questions(folders[num_frames], "test", 3, num_frames)
    return folders


def read(folder: Path, task: str) -> list[Question]:
    return read_benchmark("jsonl", str(folder / f"{task}.jsonl"), str(folder / "media"))


def media_of(question: Question) -> MediaInfo:
    if question.kind == "image":
        return MediaInfo("image", *load_image(question.path).size)
    reader = open_video_file(question.path)
    height, width, _ = next(iter(reader.chunks([0])))[0].shape
    return MediaInfo("video", width, height, fps=reader.metadata.fps, last_frame=reader.metadata.total_num_frames - 1)


def oracle(question: Question, media: MediaInfo, bins: int = 0) -> str:
    """Correct answer as coordinate tokens, shifted by `bins` bins in time, x and y."""
    truth = question.truth

    def token(axis: str, position: float) -> str:
        return coordinate_token(axis, min(position_to_bin(position, DEFAULT_NUM_BINS) + bins, DEFAULT_NUM_BINS - 1))

    def written(box: Box) -> str:
        (x1, y1, x2, y2), width, height = box, media.width, media.height
        corners = (("width", x1 / width), ("height", y1 / height), ("width", x2 / width), ("height", y2 / height))
        return f"[{''.join(token(axis, position) for axis, position in corners)}]"

    if question.task == "dgc":
        return " ".join(f"{phrase} {written(box)}" for phrase, box in truth.objects) + "."
    if question.task == "rec":
        return written(truth.box)
    if question.task in ("tr", "reg"):
        return truth.caption if not bins else f"{truth.caption} or not"
    length = max(media.last_frame - media.first_frame, 1)
    moments = "".join(f"{token('temporal', (f - media.first_frame) / length)}:{written(box)}" for f, box in (truth.tubelet or {}).items())
    start, end = (token("temporal", position) for position in truth.span or (0, 0))
    return {
        "tvg": f"{{{start}{end}}}",
        "stvg": f"During {{{start}{end}}}. Object bounding box: {moments}.",
        "svg": f"Object bounding box: {moments}.",
        "elc": f"Ends in {end}, {truth.caption}. Object bounding box: {moments}.",
    }[question.task]


def answered(questions: list[Question], num_frames: int, answer=oracle) -> list[Prediction]:
    predictions = []
    for question in questions:
        media = media_of(question)
        question = to_clip_coordinates(question, media, num_frames)
        text = answer(question, media)
        said, notes = ANSWER_PARSERS["llava_st"](text, ParseContext(question.task, media, question.given, num_frames=num_frames))
        predictions.append(
            Prediction(
                question.id, "jsonl", question.task, question.prompt, question.truth, question.given, question.path, media.to_dict(),
                text, prediction=said, notes=notes, num_frames=question.num_frames,
            )
        )  # fmt: skip
    return predictions


# Oracles


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rows_at, num_frames", [(20, 20), (100, 20), (100, 100), (20, 10)])
@pytest.mark.filterwarnings("ignore:Captions")
def test_score_oracle_has_full_metrics_up_to_quantization(shapes, task, rows_at, num_frames):
    predictions = answered(read(shapes[rows_at], task), num_frames)
    figures = score(task, predictions)
    assert figures["count"] == 3 and figures["unparsable"] == figures["cut_off"] == figures["skipped"] == 0
    for name in SHARES[task]:
        assert figures[name] == figures[f"{name}_low"] == figures[f"{name}_high"] == 100
    for name in MEANS.get(task, ()):
        assert 0.9 < figures[name] <= 1
    for prediction in predictions:  # each ground-truth frame has a predicted box and vice versa
        assert (prediction.prediction.tubelet or {}).keys() == (prediction.truth.tubelet or {}).keys()
        assert Prediction.from_dict(json.loads(json.dumps(prediction.to_dict()))) == prediction


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore:Captions")
def test_score_shifted_oracle_has_lower_metrics_and_empty_answers_have_0(shapes, task):
    questions = read(shapes[20], task)
    right, shifted, silent = (
        score(task, answered(questions, 20, answer))
        for answer in (oracle, lambda question, media: oracle(question, media, 9), lambda *_: "")
    )
    for name in SHARES[task] + MEANS.get(task, []):
        assert silent[name] == 0
    compared = MEANS.get(task, ["exact_match"])
    assert all(shifted[name] < right[name] for name in compared)
    assert silent["unparsable"] == silent["count"] == 3


def test_to_clip_coordinates_boxes_are_at_the_sampled_frames_within_the_event(shapes):
    for rows_at, num_frames in ((20, 20), (100, 20), (100, 10)):
        for question in read(shapes[rows_at], "stvg"):
            media = media_of(question)
            truth = to_clip_coordinates(question, media, num_frames).truth
            seen = {media.frame(number / (num_frames - 1)) for number in range(num_frames)}
            assert set(truth.tubelet) <= seen
            times = [time for time, _ in question.sample.boxes]
            inside = {frame for frame in seen if times[0] - 1e-3 <= frame / media.fps <= times[-1] + 1e-3}
            assert set(truth.tubelet) == inside  # with 100 sampled frames, all frames of these short videos
            if rows_at == num_frames:
                assert list(truth.tubelet.values()) == [box for _, box in question.sample.boxes]


@pytest.mark.parametrize("last_frame", [0, 10, 39, 99, 259, 1000])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("annotated_at", [20, 100])
def test_llava_st_parser_oracle_answer_has_the_ground_truth_frames_for_any_length(last_frame, num_frames, annotated_at):
    media = MediaInfo("video", 64, 48, fps=25.0, first_frame=7, last_frame=7 + last_frame)
    times = [frame / 25 for frame in dict.fromkeys(sample_frame_indices(7, 7 + last_frame, annotated_at))]
    inside = times[len(times) // 4 : len(times) // 4 * 3 + 1]
    sample = GroundingSample("a", "video", "a.mp4", text="A dog.", task="stvg", span=(inside[0], inside[-1]))
    sample = replace(sample, boxes=tuple((time, (1.0, 2.0, 30.0, 40.0)) for time in inside))
    question = to_clip_coordinates(Question("a", "stvg", "a.mp4", "video", "?", GroundingResult(), sample=sample), media, num_frames)
    said, _ = ANSWER_PARSERS["llava_st"](oracle(question, media), ParseContext("stvg", media, num_frames=num_frames))
    assert said.tubelet.keys() == question.truth.tubelet.keys()


def test_boxes_at_nearest_frames_assigns_the_nearest_box_to_each_sampled_frame():
    media = MediaInfo("video", 10, 10, fps=1.0, last_frame=100)  # sampled: 0, 25, 50, 75, 100
    a, b, c = (0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3)
    assert boxes_at_nearest_frames([(0.2, a), (0.3, b), (0.26, c)], media, 5) == {25: c}
    assert boxes_at_nearest_frames([(0.1, a), (0.9, b)], media, 5) == {0: a, 100: b}
    assert sparse_boxes_at_sampled_frames([(0.1, a), (0.9, b)], media, 5) == {25: a, 75: b}  # not before the first box or after the last
    assert sparse_boxes_at_sampled_frames([(0.1, a), (0.2, b), (0.24, c)], media, 5) == {25: b}  # no sampled frame within: the middle box
    assert sparse_boxes_at_sampled_frames([(0.4, a)], media, 5) == {50: a}
    assert boxes_at_nearest_frames([(0.7, a)], media, 1) == {0: a}


# Values worked out by hand


@pytest.mark.parametrize(
    "text, plain",
    [
        ("A dog.", "dog"),
        ("  the  Red\nball ", "red ball"),
        (", and a cat", "cat"),
        ("and the large dog", "large dog"),
        ("another dog", "another dog"),
        ("theatre", "theatre"),
        ("a", "a"),
        ("an the", "the"),
        ("...", ""),
    ],
)
def test_normalize_text_removes_case_articles_and_punctuation(text, plain):
    assert normalize_text(text) == plain


@pytest.mark.filterwarnings("ignore:Captions")
def test_score_tr_exact_match_ignores_case_article_and_punctuation():
    true = "The large red circle moves left."
    said = ["the large red circle moves left", "A large red circle moves  left.", "the red circle moves left", None]
    rows = [
        Prediction(str(n), "b", "tr", "?", GroundingResult(caption=true), prediction=GroundingResult(caption=text))
        for n, text in enumerate(said)
    ]
    figures = score("tr", rows)
    assert figures["exact_match"] == 50 and figures["unparsable"] == 1
    assert figures["exact_match_low"] < 50 < figures["exact_match_high"]
    with pytest.warns(UserWarning, match="Captions are not scored"):
        assert "METEOR" not in score("tr", rows)


SQUARE, HALF, FAR = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0), (50.0, 50.0, 60.0, 60.0)


@pytest.mark.parametrize(
    "said, true, ious",
    [
        ([("a dog", SQUARE)], [("A dog", SQUARE)], [1]),
        ([("a dog", HALF)], [("The dog.", SQUARE)], [0.5]),
        ([("a cat", SQUARE)], [("a dog", SQUARE)], [0]),
        ([("", SQUARE)], [(".", SQUARE)], [0]),
        ([("a dog", SQUARE)], [("a dog", SQUARE), ("and a dog", SQUARE)], [1, 0]),  # an object counts once
        ([("a dog", SQUARE), (", a dog", FAR)], [("a dog", FAR), ("a dog", HALF)], [1, 0.5]),  # in any order
        ([("a dog", FAR), ("a dog", SQUARE)], [("a dog", SQUARE)], [1]),
        ([("a dog", FAR)], [("a dog", SQUARE)], [0]),
        ([], [("a dog", SQUARE), ("a cat", SQUARE)], [0, 0]),
    ],
)
def test_object_ious_match_each_object_once_by_phrase(said, true, ious):
    assert object_ious(said, true).tolist() == ious


def test_score_dgc_metrics_are_means_over_images():
    media = MediaInfo("image", 100, 100)
    true = (("A dog", SQUARE), ("and a cat", FAR))
    token = {0: "000", 10: "010", 50: "050"}
    box = "[<WIDTH-{0}><HEIGHT-{0}><WIDTH-{1}><HEIGHT-{1}>]".format(token[0], token[10])
    said, notes = ANSWER_PARSERS["llava_st"](f"A dog {box}, a bird {box}.", ParseContext("dgc", media))
    assert [phrase for phrase, _ in said.objects] == ["A dog", "a bird"] and not notes
    rows = [Prediction("a", "b", "dgc", "?", GroundingResult(objects=true), media=media.to_dict(), prediction=said)]
    rows.append(replace(rows[0], id="b", truth=GroundingResult(objects=true[:1])))
    rows.append(replace(rows[0], id="c", skipped="no file", prediction=GroundingResult()))
    rows.append(replace(rows[0], id="d", prediction=ANSWER_PARSERS["llava_st"]("A dog.", ParseContext("dgc", media))[0]))
    figures = score("dgc", rows)
    iou = (10 / 99 * 100 / 10) ** -2  # the box of the answer is a little larger
    assert figures["object_recall@0.5"] == pytest.approx((50 + 100 + 0 + 0) / 4)
    assert figures["miou"] == pytest.approx((iou / 2 + iou) / 4, abs=1e-4)
    assert (figures["count"], figures["skipped"], figures["unparsable"]) == (4, 1, 1)
    with pytest.raises(ValueError, match="'dgc' has no metrics under the original protocol"):
        score("dgc", rows, "original")


# Samples


VIDEO_ROW = {"task": "stvg", "video": "a.mp4", "text": "A dog runs.", "span": [0.5, 1.0]}
VIDEO_ROW["boxes"] = [{"time": 0.5, "box": [1, 2, 30, 40]}, {"time": 1.0, "box": [3, 4, 30, 40]}]
IMAGE_ROW = {"task": "rec", "image": "a.png", "text": "a dog", "box": [1, 2, 30, 40]}


def refused(tmp_path: Path, *rows) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BrokenFileError) as error:
        read_benchmark("jsonl", str(path), str(tmp_path))
    return str(error.value)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([IMAGE_ROW, {**IMAGE_ROW, "box": [1, 2]}], "row 2: 'box[2]' is missing."),
        ([{**IMAGE_ROW, "task": "see"}], "elc, not 'see'"),
        ([{**IMAGE_ROW, "image": "../a.png"}], "'..'"),
        ([IMAGE_ROW, VIDEO_ROW], "rows of the tasks rec, stvg; put the rows of each task"),
        ([{"image": "a.png", "messages": [{"role": "user", "content": "Hello"}]}], "row 1: The row is a chat"),
        ([{**IMAGE_ROW, "id": "x"}, {**IMAGE_ROW, "id": "x"}], "The id 'x' is also that of row 1"),
        ([], "no samples"),
    ],
)
def test_read_benchmark_jsonl_invalid_rows_raise(tmp_path, rows, message):
    assert message in refused(tmp_path, *rows)


def test_read_benchmark_jsonl_prompts_use_the_task_template_and_its_given_values(shapes):
    for task in TASKS:
        for question in read(shapes[20], task):
            media = media_of(question)
            done = to_clip_coordinates(question, media, 20)
            assert done.sample is None and to_clip_coordinates(done, media, 20) is done
            assert question.prompt.startswith(TASKS[task].prompt.partition("{")[0])
            given = {name for name, value in vars(done.given).items() if value is not None}
            assert given == {"svg": {"span"}, "tr": {"span"}, "elc": {"span", "box"}, "reg": {"box"}}.get(task, set())
            if task == "elc":
                assert done.given.span == (done.truth.span[0],) * 2 and done.given.box == question.sample.boxes[0][1]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"span": [0.5, 9.0]}, "9 s is outside the clip"),
        ({"boxes": [{"time": 0.5, "box": [1, 2, 300, 40]}]}, "lies outside the image of 64x48"),
        ({"video": "gone.mp4"}, "gone.mp4"),
        ({"clip": [0, 6]}, "outside the clip"),
    ],
)
def test_eval_sample_that_does_not_fit_its_video_is_skipped_with_the_reason(tmp_path, model_folder, capsys, change, message):
    write_video(tmp_path / "a.mp4", moving_frames(20, 48, 64), fps=10)
    annotations = write_json(tmp_path / "rows.json", [VIDEO_ROW, {**VIDEO_ROW, **change}, {**VIDEO_ROW, "start": 0.3, "end": 1.6}])
    assert evaluate(annotations, tmp_path, model_folder, tmp_path / "out") == 0
    scores = json.loads(capsys.readouterr().out)
    assert (scores["default"]["count"], scores["default"]["skipped"]) == (3, 1)
    whole, wrong, part = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert message in wrong.skipped and whole.skipped is None and part.skipped is None
    assert (part.media["first_frame"], part.media["last_frame"]) == (3, 15)
    assert part.truth.span == pytest.approx((2 / 12, 7 / 12))
    assert llava_st(["report", str(tmp_path / "out")]) == 0


# Commands


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor(num_frames=20)
    model_for(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def evaluate(annotations, media, model, output) -> int:
    command = ["eval", "--benchmark", "jsonl", "--annotations", str(annotations), "--data-folder", str(media), "--model", str(model)]
    return llava_st([*command, "--output", str(output), "--max-new-tokens", "6", "--workers", "0", "--batch-size", "2"])


@pytest.mark.filterwarnings("ignore:Captions")
def test_eval_score_and_report_commands_process_all_eight_tasks(tmp_path, shapes, model_folder, capsys):
    for task in TASKS:
        output = tmp_path / "runs" / task
        assert evaluate(shapes[100] / f"{task}.jsonl", shapes[100] / "media", model_folder, output) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores == json.loads((output / "scores.json").read_text())
        assert scores["default"]["count"] == 3 and scores["default"].keys() >= set(SHARES[task] + MEANS.get(task, []))
        # The original program scores neither text alone nor tubelets at 20 frames.
        assert ("original" in scores) == (task in ("rec", "tvg"))
        for prediction in read_predictions(output / "predictions.jsonl"):
            assert prediction.benchmark == f"jsonl_{task}"
            assert prediction.num_frames == (None if task in IMAGE_TASKS else 20)
        assert llava_st(["score", str(output), "--answer-format", "llava_st"]) == 0
        assert json.loads(capsys.readouterr().out) == scores["default"]
    assert llava_st(["score", str(tmp_path / "runs" / "stvg"), "--protocol", "original"]) == 1
    assert "boxes at 20 frames of a clip" in capsys.readouterr().err
    assert llava_st(["report", str(tmp_path / "runs")]) == 0
    report = (tmp_path / "runs" / "report.md").read_text().replace("\\", "")
    assert all(f"## jsonl_{task}" in report for task in TASKS) and "object_recall@0.5" in report and "exact_match" in report


def test_score_command_on_answers_of_another_model_writes_predictions_for_a_report(tmp_path, shapes, capsys):
    predictions = answered(read(shapes[20], "svg"), 20)
    rows = tmp_path / "predictions.jsonl"
    append_predictions(rows, predictions)
    lines = []
    for prediction in predictions:
        media = prediction.medium()
        boxes = [{"time": frame / media.fps, "bbox_2d": list(box)} for frame, box in prediction.truth.tubelet.items()]
        lines.append(json.dumps({"id": prediction.id, "answer": json.dumps(boxes)}) + "\n")
    (tmp_path / "peer.jsonl").write_text("".join(lines))
    output = tmp_path / "peer"
    command = ["score", str(tmp_path / "peer.jsonl"), "--references", str(rows), "--answer-format", "qwen2_5_vl", "--output", str(output)]
    assert llava_st(command) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["m_viou"] == pytest.approx(1)  # at the 20 frames of the ground truth
    assert json.loads((output / "scores.json").read_text()) == {"default": figures}
    assert all(prediction.reader == "qwen2_5_vl" for prediction in read_predictions(output / "predictions.jsonl"))
    assert llava_st(["score", str(output)]) == 0 and json.loads(capsys.readouterr().out) == figures
    assert llava_st(["report", str(output)]) == 0 and "qwen2_5_vl" in (output / "report.html").read_text()
    capsys.readouterr()
    assert llava_st(command) == 1
    assert "already contains predictions" in capsys.readouterr().err
