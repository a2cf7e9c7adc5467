# SPDX-License-Identifier: Apache-2.0
"""End-to-end test of each benchmark on a miniature: scores of an oracle, of a shifted oracle, and of empty answers."""

import json
from pathlib import Path

import pytest

from llava_st_hf.cli import main as llava_st
from llava_st_hf.evaluation import ANSWER_PARSERS, BENCHMARKS, ParseContext, Prediction, captions, read_benchmark, score
from llava_st_hf.evaluation.captions import missing_caption_tools
from llava_st_hf.evaluation.predictions import append_predictions, read_predictions
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS
from modeling_tests.miniatures import MINIATURES, empty_oracle, in_clip, media_of, oracle, shifted_oracle
from modeling_tests.processors import model_for, tiny_processor


MEANS = {"rec": ["miou"], "tvg": ["miou"], "svg": ["m_siou", "m_viou"]}
MEANS |= {task: ["m_tiou", "m_siou", "m_viou"] for task in ("stvg", "elc")}
RECALLS = {"rec": ["R1@0.5"], "tvg": ["R1@0.5"], "stvg": ["tiou@0.5", "siou@0.5", "viou@0.5"]}
RECALLS |= {"svg": ["siou@0.5", "viou@0.5"], "elc": ["tiou@0.5", "siou@0.5", "viou@0.5"]}


@pytest.fixture
def no_caption_tools(monkeypatch):
    """Omits caption metrics, which start Java for each score."""
    monkeypatch.setattr(captions, "missing_caption_tools", lambda: "Captions are not scored: there is no Java.")


def answered(name: str, folder: Path, answer, num_frames: int = 100) -> list[Prediction]:
    """Returns the miniature of a benchmark with answers of an oracle, written to a file and read again."""
    annotations, media = MINIATURES[name](folder)
    predictions = []
    for raw in read_benchmark(name, annotations, media):
        question = in_clip(raw, num_frames)
        text, medium = answer(question), media_of(question)
        context = ParseContext(question.task, medium, question.given, num_frames=question.num_frames)
        said, notes = ANSWER_PARSERS["llava_st"](text, context)
        predictions.append(
            Prediction(
                question.id,
                name,
                question.task,
                question.prompt,
                question.truth,
                question.given,
                question.path,
                medium.to_dict(),
                text,
                prediction=said,
                notes=notes,
                num_frames=question.num_frames,
            )
        )
    append_predictions(folder / "predictions.jsonl", predictions)
    return list(read_predictions(folder / "predictions.jsonl"))


@pytest.mark.parametrize("name", MINIATURES)
@pytest.mark.filterwarnings("ignore:.*aptions")
def test_oracle_has_maximum_recall_and_means_up_to_quantization_error(tmp_path, name, one_meteor, request):
    predictions = answered(name, tmp_path, oracle)
    task = BENCHMARKS[name].task
    figures = score(task, predictions)
    for recall in RECALLS[task]:
        assert figures[recall] == 100
    for mean in MEANS[task]:
        assert 0.8 < figures[mean] <= 1  # objects are a few dozen pixels large, so that half a bin is a large fraction of an edge
    if task == "elc" and missing_caption_tools() is None:
        assert figures["ROUGE_L"] == pytest.approx(1.0)
    assert figures["count"] == len(predictions) > 1
    assert figures["unparsable"] == figures["cut_off"] == figures["skipped"] == 0
    request.getfixturevalue("no_caption_tools")  # test_evaluation_captions compares those of the original protocol
    original = score(task, predictions, "original")
    for recall in RECALLS[task]:
        # An answer "Ends in <TEMP-k>" has no span for the original scorer.
        assert original[recall] == (0 if task == "elc" and recall.startswith("tiou") else 100)


@pytest.mark.parametrize("name", [name for name in MINIATURES if BENCHMARKS[name].task in ("stvg", "svg", "elc")])
@pytest.mark.parametrize("num_frames", [20, 32, 100])
@pytest.mark.filterwarnings("ignore:.*aptions")
def test_oracle_at_sampled_frames_of_any_number_scores_up_to_quantization_error(tmp_path, name, num_frames, no_caption_tools):
    predictions = answered(name, tmp_path, oracle, num_frames)
    task = BENCHMARKS[name].task
    metrics = score(task, predictions)
    # 0.8 is the bound of boxes of a few dozen pixels with edges off by half a bin; missing frames would cost more.
    assert metrics["viou@0.7"] == 100 and 0.8 < metrics["m_viou"] == metrics["m_siou"] <= 1
    for prediction in predictions:
        assert prediction.num_frames == num_frames
        first, last = prediction.medium().first_frame, prediction.medium().last_frame
        sampled = {first + round(i / (num_frames - 1) * (last - first)) for i in range(num_frames)}
        assert prediction.truth.tubelet.keys() == prediction.prediction.tubelet.keys() <= sampled


@pytest.mark.parametrize("name", ["charades_sta", "refcoco_val", "st_align_stvg"])
@pytest.mark.parametrize("bins", [3, 8])
def test_shifted_oracle_scores_the_computed_iou(tmp_path, name, bins):
    predictions = answered(name, tmp_path, lambda question: shifted_oracle(question, bins))
    task = BENCHMARKS[name].task
    by_hand = {"charades_sta": span_overlap, "refcoco_val": picture_overlap, "st_align_stvg": span_overlap}[name]
    expected = [by_hand(prediction, bins) for prediction in predictions]
    key = {"charades_sta": "miou", "refcoco_val": "miou", "st_align_stvg": "m_tiou"}[name]
    rounding = 5e-4 if task == "rec" else 1e-6  # boxes of answers are rounded to 0.01 pixels
    assert score(task, predictions)[key] == pytest.approx(sum(expected) / len(expected), abs=rounding)
    assert score(task, predictions)[key] < score(task, answered(name, tmp_path / "true", oracle))[key]


def in_bins(position: float) -> int:
    return round(position * (DEFAULT_NUM_BINS - 1))


def span_overlap(prediction: Prediction, bins: int) -> float:
    """Computes the IoU of the ground-truth span and a span shifted by `bins`, clipped to the end of the video."""
    last = DEFAULT_NUM_BINS - 1
    start, end = (min(in_bins(value) + bins, last) / last for value in prediction.truth.span)
    true_start, true_end = prediction.truth.span
    shared = max(0.0, min(end, true_end) - max(start, true_start))
    return shared / (end - start + true_end - true_start - shared)


def picture_overlap(prediction: Prediction, bins: int) -> float:
    """Computes the IoU of the ground-truth box and a box shifted right and down by `bins`, in pixels, clipped to the image."""
    last, media = DEFAULT_NUM_BINS - 1, prediction.medium()
    sizes = (media.width, media.height) * 2
    box = [min(in_bins(value / size) + bins, last) / last * size for value, size in zip(prediction.truth.box, sizes, strict=True)]
    sides = [max(0.0, min(box[i + 2], prediction.truth.box[i + 2]) - max(box[i], prediction.truth.box[i])) for i in (0, 1)]
    area = lambda b: (b[2] - b[0]) * (b[3] - b[1])  # noqa: E731
    shared = sides[0] * sides[1]
    return shared / (area(box) + area(prediction.truth.box) - shared)


@pytest.mark.parametrize("name", MINIATURES)
@pytest.mark.filterwarnings("ignore:.*aptions")
def test_empty_answers_score_zero_and_count_as_unparsable(tmp_path, name, no_caption_tools):
    predictions = answered(name, tmp_path, empty_oracle)
    task = BENCHMARKS[name].task
    figures = score(task, predictions)
    assert all(figures[key] == 0 for key in MEANS[task] + RECALLS[task])
    assert figures["unparsable"] == figures["count"] == len(predictions)


# Command line


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor(num_frames=100)  # required by the original protocol
    model_for(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_cli_eval_score_again_and_score_other_model(tmp_path, model_folder, capsys, monkeypatch):
    shut_down = []
    monkeypatch.setattr("llava_st_hf.evaluation.commands.shut_down_processes", lambda: shut_down.append(True))
    annotations, media = MINIATURES["st_align_stvg"](tmp_path)
    output = tmp_path / "output"
    command = ["eval", "--benchmark", "st_align_stvg", "--annotations", annotations, "--data-folder", media, "--model", str(model_folder)]
    command += ["--output", str(output), "--max-new-tokens", "8", "--workers", "0", "--batch-size", "2"]
    assert llava_st(command) == 0
    assert shut_down == [True]
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((output / "scores.json").read_text())
    assert scores["default"]["cut_off"] == scores["default"]["count"]  # a random model generates no end token within eight tokens
    assert llava_st(["score", str(output)]) == 0
    assert json.loads(capsys.readouterr().out) == scores["default"]
    assert llava_st(["score", str(output), "--protocol", "original"]) == 0
    assert json.loads(capsys.readouterr().out) == scores["original"]
    assert llava_st(command) == 0  # all questions are answered
    assert json.loads(capsys.readouterr().out) == scores

    rows = output / "predictions.jsonl"
    peer = tmp_path / "peer.jsonl"
    answers = [{"id": p.id, "answer": "From 0 to 1 seconds"} for p in read_predictions(rows)]
    peer.write_text("".join(json.dumps(answer) + "\n" for answer in answers[1:]))
    assert llava_st(["score", str(peer), "--references", str(rows), "--answer-format", "seconds"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["skipped"] == 1 and figures["cut_off"] == 0 and figures["count"] == len(answers)
    assert figures["m_tiou"] > 0
    assert llava_st(["score", str(peer), "--references", str(rows), "--answer-format", "seconds", "--protocol", "original"]) == 1
    assert "reads coordinate tokens only" in capsys.readouterr().err


def test_cli_score_boxes_in_pixels_of_seen_size_are_rescaled(tmp_path, capsys):
    predictions = answered("refcoco_val", tmp_path, oracle)
    lines = []
    for prediction in predictions:
        media, box = prediction.medium(), prediction.truth.box
        answer = json.dumps({"bbox_2d": [2 * box[0], 3 * box[1], 2 * box[2], 3 * box[3]]})
        lines.append({"id": prediction.id, "answer": answer, "seen_size": [2 * media.width, 3 * media.height]})
    lines[0]["finished"] = False
    lines[1]["answer"] = None
    peer = tmp_path / "peer.jsonl"
    peer.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["score", str(peer), "--references", str(tmp_path / "predictions.jsonl"), "--answer-format", "qwen2_5_vl"]
    assert llava_st(command) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["cut_off"], figures["skipped"], figures["unparsable"]) == (1, 1, 0)
    assert figures["miou"] == pytest.approx((len(lines) - 1) / len(lines))
    size = "`seen_size` must be [width, height], integers of at least 1; got"
    for line, message in (
        (json.dumps({**lines[0], "seen_size": 3}), f"{size} 3."),
        (json.dumps({**lines[0], "seen_size": [0, 4]}), f"{size} [0, 4]."),
        (json.dumps({**lines[0], "seen_size": ["a", 4]}), f"{size} ['a', 4]."),
        (json.dumps({**lines[0], "answer": 3}), "`answer` must be a string or null, got 3."),
        (json.dumps({**lines[0], "finished": 3}), "`finished` must be true or false, got 3."),
        (json.dumps({**lines[0], "id": 3}), "`id` must be a string, got 3."),
        (json.dumps({"id": "a"}), "`answer` is missing"),
        ("[1]", "Each line must be an object with `id` and `answer`; got '[1]'."),
        ("{", "This is not valid JSON"),
    ):
        peer.write_text(line)
        assert llava_st(command) == 1
        assert f"peer.jsonl, line 1: {message}" in capsys.readouterr().err


def test_cli_invalid_arguments_raise_before_a_model_is_loaded(tmp_path, capsys):
    annotations, media = MINIATURES["charades_sta"](tmp_path)
    common = ["--data-folder", media, "--model", "none", "--output", str(tmp_path / "out")]
    charades = ["eval", "--benchmark", "charades_sta", "--annotations", annotations, *common]
    for command, message in (
        (["eval", "--benchmark", "charades", "--annotations", annotations, *common], "'charades' is not a valid benchmark"),
        (["eval", "--benchmark", "charades_sta", "--annotations", annotations + "x", *common], "charades"),
        ([*charades, "--limit", "0"], "--limit must be at least 1, got 0"),
        ([*charades, "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["score", str(tmp_path / "none.jsonl")], "none.jsonl"),
        (["score", annotations, "--references", annotations], "--references needs --answer-format"),
        (["score", annotations, "--answer-format", "gpt"], "--answer-format gpt is not a valid format"),
    ):
        assert llava_st(command) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
