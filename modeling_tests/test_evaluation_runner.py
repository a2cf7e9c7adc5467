# SPDX-License-Identifier: Apache-2.0
"""Asking a benchmark's questions: batches, broken media, runs that were killed, several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llava_st_hf.cli import main
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.evaluation.predictions import append_predictions, drop_broken_end, read_predictions
from llava_st_hf.evaluation.report_samples import draw_sample
from llava_st_hf.evaluation.rows import GroundingResult, Prediction, Question
from llava_st_hf.evaluation.runner import EvaluationSettings, run_benchmark
from llava_st_hf.model import image_processing_llava_st, video_processing_llava_st
from modeling_tests.corpora import write_media
from modeling_tests.media import write_cut
from modeling_tests.miniatures import MINIATURES
from modeling_tests.processors import model_for, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[1]


def questions_about(media: dict[str, str], count: int = 7) -> list[Question]:
    """Videos and pictures in turn, one of them with a clip, prompts of different lengths."""
    questions = []
    for number in range(count):
        kind = ("video", "image")[number % 2]
        prompt = f"Where is thing {number} {'really ' * number}<h0.5>?"
        clip = (5, 15) if number == 2 else None
        truth = GroundingResult(span=(0.1, 0.5)) if kind == "video" else GroundingResult(box=(1, 2, 3, 4))
        questions.append(Question(str(number), "tvg" if kind == "video" else "rec", media[kind], kind, prompt, truth, clip=clip))
    return questions


def read_answer(answer, question, media, processor):
    return GroundingResult(caption=answer[:8]), [f"{media.kind} of {media.width}"]


def run(folder: Path, media: dict, questions=None, reader=read_answer, batch_size: int = 2, reading=None, **options) -> list[Prediction]:
    processor = tiny_processor()
    settings = EvaluationSettings("made", "tiny", batch_size=batch_size, max_new_tokens=6, **(reading or {}))
    questions = questions_about(media) if questions is None else questions
    return run_benchmark(questions, model_for(processor), processor, folder, settings, reader, num_workers=0, **options)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, media):
    return run(tmp_path_factory.mktemp("undisturbed"), media)


def test_every_question_has_a_line_with_all_it_takes_to_score_it_again(tmp_path, media):
    predictions = run(tmp_path, media)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [Prediction.from_dict(line) for line in lines] == predictions
    assert [prediction.id for prediction in predictions] == [str(number) for number in range(7)]
    for prediction, question in zip(predictions, questions_about(media), strict=True):
        assert (prediction.prompt, prediction.truth, prediction.path) == (question.prompt, question.truth, question.path)
        assert prediction.model == "tiny" and prediction.seed == 0
        assert {"torch", "transformers", "llava_st_hf"} <= prediction.versions.keys()
        assert prediction.answer is not None and prediction.prediction.caption == prediction.answer[:8]
        assert prediction.finished is False  # a random model does not end by itself within six tokens
        medium = prediction.medium()
        assert (medium.width, medium.height) == (64, 48)
    assert (predictions[2].media["first_frame"], predictions[2].media["last_frame"]) == (5, 15)
    assert sorted(os.listdir(tmp_path)) == ["predictions.jsonl", "settings.json"]


def test_answers_are_those_of_generate(undisturbed, media):
    processor = tiny_processor()
    model = model_for(processor)
    for prediction, question in zip(undisturbed, questions_about(media), strict=True):
        medium = {"type": question.kind, "path": question.path, **({"clip": list(question.clip)} if question.clip else {})}
        messages = [{"role": "user", "content": [medium, {"type": "text", "text": question.prompt}]}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert prediction.answer == processor.decode_answer(generated)


@pytest.mark.parametrize("moment", [0, 3, 5])
def test_an_interrupted_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path, media, undisturbed, moment):
    seen = []

    def interrupted(answer, question, *rest):
        if len(seen) == moment:
            raise KeyboardInterrupt
        seen.append(question.id)
        return read_answer(answer, question, *rest)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, media, reader=interrupted)
    again = []

    def counted(answer, question, *rest):
        again.append(question.id)
        return read_answer(answer, question, *rest)

    assert run(tmp_path, media, reader=counted) == undisturbed
    assert len(again) == 7 - moment // 2 * 2  # whole batches are kept
    assert run(tmp_path, media, reader=lambda *rest: 1 / 0) == undisturbed  # nothing left to do


def test_half_a_line_of_a_killed_writer_is_dropped(tmp_path, media, undisturbed):
    run(tmp_path, media)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").unlink()
    (tmp_path / "part-000.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    assert run(tmp_path, media) == undisturbed


def test_a_run_killed_for_real_loses_and_repeats_nothing(tmp_path, media, undisturbed):
    program = (
        "import os, signal, sys; from pathlib import Path; from modeling_tests import test_evaluation_runner as t\n"
        "def killer(answer, question, *rest):\n"
        "    if question.id == '5': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return t.read_answer(answer, question, *rest)\n"
        f"t.run(Path({str(tmp_path)!r}), {media!r}, reader=killer)"
    )
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=REPOSITORY, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and len(list(read_predictions(tmp_path / "part-000.jsonl"))) == 4
    assert run(tmp_path, media) == undisturbed


def test_two_processes_answer_as_one(tmp_path, media, undisturbed):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from pathlib import Path; from modeling_tests import test_evaluation_runner as t\n"
        f"t.run(Path({str(tmp_path / 'run')!r}), {media!r})\n"
        "from llava_st_hf.evaluation.runner import this_process; assert this_process().num_processes == 2"
    )
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    environment |= {"ACCELERATE_USE_CPU": "true"}
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert list(read_predictions(tmp_path / "run/predictions.jsonl")) == undisturbed
    assert sorted(os.listdir(tmp_path / "run")) == ["predictions.jsonl", "settings.json"]


def run_counting(monkeypatch, folder: Path, questions: list[Question], **options) -> tuple[list[str], list[Prediction]]:
    """The names of the files in the order in which they were read, beside what came of it."""
    opened: list[str] = []

    def counting(read):
        def counted(source, *rest, **named):
            if isinstance(source, str):  # and no picture that was read before
                opened.append(Path(source).name)
            return read(source, *rest, **named)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(video_processing_llava_st, "read_video_file", counting(video_processing_llava_st.read_video_file))
        patch.setattr(image_processing_llava_st, "load_image", counting(image_processing_llava_st.load_image))
        return opened, run(folder, {}, questions, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, media):
    """Nine questions in turn about two videos and a picture; and what is answered to each alone."""
    folder = tmp_path_factory.mktemp("shared")
    media = {name: shutil.copy(media["image" if name.endswith("png") else "video"], folder / name) for name in ("a.mp4", "b.mp4", "c.png")}
    questions = []
    for number in range(9):
        name = list(media)[number % 3]
        kind, start = ("image", "<w32px>") if name == "c.png" else ("video", "<t0.4s>")
        prompt = f"Where is thing {number} {'really ' * number}{start}?"
        questions.append(Question(str(number), "tvg", str(media[name]), kind, prompt, GroundingResult(span=(0.1, 0.5))))
    alone = [run(folder / question.id, {}, [question], batch_size=1)[0] for question in questions]
    return questions, alone


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_a_medium_is_read_once_for_all_questions_about_it(tmp_path, monkeypatch, shared, batch_size):
    questions, alone = shared
    opened, predictions = run_counting(monkeypatch, tmp_path, questions, batch_size=batch_size)
    assert opened == ["a.mp4", "b.mp4", "c.png"]
    assert predictions == alone


def test_clips_of_a_file_are_media_of_their_own(tmp_path, monkeypatch, shared):
    first, *_ = shared[0]
    questions = [replace(first, id=str(number), prompt="When?", clip=(5 * (number % 2), 15)) for number in range(4)]
    opened, predictions = run_counting(monkeypatch, tmp_path, questions)
    assert opened == ["a.mp4", "a.mp4"]
    assert [prediction.media["first_frame"] for prediction in predictions] == [0, 5, 0, 5]


def test_a_resumed_run_reads_only_what_it_still_asks_about(tmp_path, monkeypatch, shared):
    questions, alone = shared

    def interrupted(answer, question, *rest):
        if question.id == "4":  # the second of those about b.mp4
            raise KeyboardInterrupt
        return read_answer(answer, question, *rest)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {}, questions, reader=interrupted)
    opened, predictions = run_counting(monkeypatch, tmp_path, questions)
    assert opened == ["b.mp4", "c.png"]
    assert predictions == alone
    opened, predictions = run_counting(monkeypatch, tmp_path, questions)
    assert opened == [] and predictions == alone


def test_one_impossible_question_about_a_medium_stands_in_no_others_way(tmp_path, shared):
    questions, alone = shared
    impossible = replace(questions[3], prompt="What happens at <t99s>?")
    predictions = run(tmp_path, {}, [*questions[:3], impossible, *questions[4:]])
    assert "<t99s>" in predictions[3].skipped and predictions[3].media is None
    assert [p for p in predictions if p.id != "3"] == [p for p in alone if p.id != "3"]


def test_the_command_line_on_two_processes(tmp_path):
    annotations, folder = MINIATURES["charades_sta"](tmp_path / "benchmark")
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    ask = ["eval", "--benchmark", "charades_sta", "--annotations", annotations, "--data-folder", folder, "--model", str(tmp_path / "model")]
    ask += ["--max-new-tokens", "6", "--workers", "1", "--output"]
    launch = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [*launch, "-m", "llava_st_hf.cli", *ask, str(tmp_path / "two")], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert sorted(os.listdir(tmp_path / "two")) == ["predictions.jsonl", "scores.json", "settings.json"]
    assert main([*ask, str(tmp_path / "one")]) == 0
    for name in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert json.loads(finished.stdout) == json.loads((tmp_path / "one/scores.json").read_text())  # by one of the two


def test_a_broken_medium_is_told_of_and_stands_in_no_others_way(tmp_path, media, undisturbed):
    questions = questions_about(media)
    broken = Question("2", "tvg", str(tmp_path / "gone.mp4"), "video", "Where?", GroundingResult(span=(0, 1)))
    predictions = run(tmp_path, media, [*questions[:2], broken, *questions[3:]])
    assert "gone.mp4" in predictions[2].skipped and predictions[2].answer is None and predictions[2].media is None
    assert [p.answer for p in predictions if p.id != "2"] == [p.answer for p in undisturbed if p.id != "2"]
    alone = run(tmp_path / "alone", media, [broken])
    assert alone[0].skipped and len(alone) == 1


def test_answers_of_another_run_are_not_mixed_in(tmp_path, media):
    run(tmp_path, media)
    with pytest.raises(ValueError, match="batch_size was 2 and is 3"):
        run(tmp_path, media, batch_size=3)
    with pytest.raises(ValueError, match="video_backend was 'pyav' and is 'decord'; allow_truncated was False and is True"):
        run(tmp_path, media, reading={"video_backend": "decord", "allow_truncated": True})
    with pytest.raises(ValueError, match="questions was 7 and is 6"):
        run(tmp_path, media, questions_about(media)[:6])
    others = questions_about(media)
    others[0] = Question("other", "tvg", media["video"], "video", "When?", GroundingResult(span=(0, 1)))
    with pytest.raises(ValueError, match="answers to other questions, such as '0'"):
        run(tmp_path, media, others)


def test_settings_files_from_before_ways_to_read_are_gone_on_from(tmp_path, media, undisturbed):
    run(tmp_path, media)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    del settings["video_backend"], settings["allow_truncated"]
    path.write_text(json.dumps(settings))
    (tmp_path / "predictions.jsonl").write_text((tmp_path / "predictions.jsonl").read_text().partition("\n")[0] + "\n")
    assert run(tmp_path, media) == undisturbed
    with pytest.raises(ValueError, match="allow_truncated was False and is True"):
        run(tmp_path, media, reading={"allow_truncated": True})


def test_files_that_lost_their_end_are_skipped_or_noted(tmp_path, media):
    cut = Question("0", "tvg", str(write_cut(tmp_path / "cut.mkv")), "video", "When?", GroundingResult(span=(0.1, 0.5)))
    whole = replace(cut, id="1", path=media["video"])
    skipped, _ = run(tmp_path / "refused", media, [cut, whole], reader=read_own_answer)
    assert "cut short" in skipped.skipped
    noted, plain = run(tmp_path / "read", media, [cut, whole], reader=read_own_answer, reading={"allow_truncated": True})
    assert noted.skipped is None and "cut short" in noted.notes[0] and not any("cut short" in note for note in plain.notes)
    # Whoever reads the answers again, in whatever format, is told as well; and the report shows the part that is there.
    path = str(tmp_path / "read/predictions.jsonl")
    assert main(["score", path, "--answer-format", "seconds", "--output", str(tmp_path / "again")]) == 0
    assert "cut short" in next(read_predictions(tmp_path / "again/predictions.jsonl")).notes[0]
    assert draw_sample(noted)
    with pytest.raises(OSError, match="cut short"):
        draw_sample(replace(plain, path=cut.path))


def test_an_unknown_backend_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="video_backend must be one of"):
        EvaluationSettings("made", "tiny", video_backend="opencv")


def test_the_progress_bar_tells_the_overlap_so_far(tmp_path, media, capsys):
    def halves(answer, question, media, processor):  # half of each span, and no box
        return GroundingResult(span=(0.1, 0.3)), []

    run(tmp_path, media, reader=halves, show_overlap=True)
    assert "overlap 0.286" in capsys.readouterr().err  # four spans of IoU 0.5 among seven questions


@pytest.mark.parametrize("name", ["batch_size", "max_new_tokens"])
def test_settings_that_answer_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        EvaluationSettings("made", "tiny", **{name: 0})


def test_a_line_that_is_no_prediction_is_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    append_predictions(path, [Prediction("1", "made", "tvg", "When?", GroundingResult(span=(0, 1)))])
    with path.open("a") as file:
        file.write('{"id": 3}\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 2 is no prediction"):
        list(read_predictions(path))


@pytest.mark.parametrize("content, kept", [(b"", b""), (b"half", b""), (b"a\nhalf", b"a\n"), (b"a\nb\n", b"a\nb\n")])
def test_a_broken_end_is_cut_off(tmp_path, content, kept):
    path = tmp_path / "lines"
    path.write_bytes(content)
    drop_broken_end(path)
    assert path.read_bytes() == kept


def test_generation_is_greedy_whatever_the_model_is_set_to(tmp_path, media, undisturbed):
    processor = tiny_processor()
    model = model_for(processor)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    torch.manual_seed(99)
    settings = EvaluationSettings("made", "tiny", batch_size=2, max_new_tokens=6)
    assert run_benchmark(questions_about(media), model, processor, tmp_path, settings, read_answer, num_workers=1) == undisturbed
