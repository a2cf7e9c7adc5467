# SPDX-License-Identifier: Apache-2.0
"""Running a benchmark: batches, unreadable files, killed and resumed runs, several processes, locks."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_st_hf import LlavaSTForConditionalGeneration
from llava_st_hf.cli import main
from llava_st_hf.evaluation import predictions as predictions_module
from llava_st_hf.evaluation.commands import read_own_answer
from llava_st_hf.evaluation.predictions import append_predictions, drop_broken_end, read_predictions
from llava_st_hf.evaluation.report_samples import draw_sample
from llava_st_hf.evaluation.rows import GroundingResult, Prediction, Question
from llava_st_hf.evaluation.runner import EvaluationSettings, run_benchmark
from llava_st_hf.locking import locked_folder
from llava_st_hf.model import image_processing_llava_st, modeling_llava_st, video_processing_llava_st
from modeling_tests.child_processes import call_in_child
from modeling_tests.corpora import write_media
from modeling_tests.media import write_cut
from modeling_tests.miniatures import MINIATURES
from modeling_tests.processors import model_for, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[1]


def questions_about(media: dict[str, str], count: int = 7) -> list[Question]:
    """Returns alternating questions about a video and an image, one with a clip, with prompts of different lengths."""
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


def run(
    folder: Path, media: dict, questions=None, reader=read_answer, batch_size: int = 2, reading=None, num_workers: int = 0, **options
) -> list[Prediction]:
    processor = tiny_processor()
    settings = EvaluationSettings("made", "tiny", batch_size=batch_size, max_new_tokens=6, **(reading or {}))
    questions = questions_about(media) if questions is None else questions
    return run_benchmark(questions, model_for(processor), processor, folder, settings, reader, num_workers=num_workers, **options)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, media):
    return run(tmp_path_factory.mktemp("uninterrupted"), media)


def test_run_benchmark_writes_one_complete_line_per_question(tmp_path, media):
    predictions = run(tmp_path, media)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [Prediction.from_dict(line) for line in lines] == predictions
    assert [prediction.id for prediction in predictions] == [str(number) for number in range(7)]
    for prediction, question in zip(predictions, questions_about(media), strict=True):
        assert (prediction.prompt, prediction.truth, prediction.path) == (question.prompt, question.truth, question.path)
        assert prediction.model == "tiny" and prediction.seed == 0
        assert {"torch", "transformers", "llava_st_hf"} <= prediction.versions.keys()
        assert prediction.answer is not None and prediction.prediction.caption == prediction.answer[:8]
        assert prediction.finished is False  # a random model generates no end token within six tokens
        medium = prediction.medium()
        assert (medium.width, medium.height) == (64, 48)
    assert (predictions[2].media["first_frame"], predictions[2].media["last_frame"]) == (5, 15)
    assert sorted(os.listdir(tmp_path)) == [".lock", ".lock-owner", "predictions.jsonl", "settings.json"]


def test_run_benchmark_answers_equal_generate(uninterrupted, media):
    processor = tiny_processor()
    model = model_for(processor)
    for prediction, question in zip(uninterrupted, questions_about(media), strict=True):
        medium = {"type": question.kind, "path": question.path, **({"clip": list(question.clip)} if question.clip else {})}
        messages = [{"role": "user", "content": [medium, {"type": "text", "text": question.prompt}]}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert prediction.answer == processor.decode_answer(generated)


@pytest.mark.parametrize("moment", [0, 3, 5])
def test_run_benchmark_resumed_equals_uninterrupted(tmp_path, media, uninterrupted, moment):
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

    assert run(tmp_path, media, reader=counted) == uninterrupted
    assert len(again) == 7 - moment // 2 * 2  # complete batches are kept
    assert run(tmp_path, media, reader=lambda *rest: 1 / 0) == uninterrupted  # all questions are answered


def test_run_benchmark_incomplete_line_is_dropped(tmp_path, media, uninterrupted):
    run(tmp_path, media)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "predictions.jsonl").unlink()
    (tmp_path / "part-000.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    assert run(tmp_path, media) == uninterrupted


def killed_at_5(answer, question, *rest):
    if question.id == "5":
        os.kill(os.getpid(), signal.SIGKILL)
    return read_answer(answer, question, *rest)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_run_benchmark_after_sigkill_resumes(tmp_path, media, uninterrupted, num_workers):
    killed = partial(run, tmp_path, media, reader=killed_at_5, num_workers=num_workers)
    assert call_in_child(killed, errors=tmp_path.with_suffix(".errors")) == -signal.SIGKILL
    assert len(list(read_predictions(tmp_path / "part-000.jsonl"))) == 4
    assert run(tmp_path, media) == uninterrupted  # immediately, even if a worker of the killed process is still alive


# Two runs in each of two processes: one that succeeds, and one in which the second process fails while the first one waits for it.
IN_TWO_PROCESSES = """
import sys, time
from pathlib import Path
from llava_st_hf.evaluation import runner
from modeling_tests import test_evaluation_runner as t

folder, media = Path(sys.argv[1]), {"video": sys.argv[2], "image": sys.argv[3]}
state = runner.this_process()
assert state.num_processes == 2
files = runner._files

def late(folder):
    # The second process lists the predictions folder late, when the first could already have answered its share.
    if state.process_index == 1 and not list(folder.glob("part-001*")):
        time.sleep(3)
    return files(folder)

answered = []

def counting(answer, question, *rest):
    answered.append(question.id)
    return t.read_answer(answer, question, *rest)

def failing(answer, question, *rest):
    if state.process_index == 1:
        raise RuntimeError("deliberate")
    return t.read_answer(answer, question, *rest)

runner._files = late
t.run(folder / "equal", media, reader=counting)
(folder / f"answered{state.process_index}").write_text(" ".join(answered))
runner._files = files
t.run(folder / "failing", media, reader=failing)
"""


def launch(program: str, folder: Path, media: dict) -> subprocess.CompletedProcess:
    """Runs a program in two processes on CPU; its arguments are the folder, the video and the image."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(folder / "program.py"), str(folder), media["video"], media["image"]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=240)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, media) -> tuple[Path, subprocess.CompletedProcess]:
    """Folder and result of IN_TWO_PROCESSES; one start for two tests, as it takes 20 seconds of CPU time."""
    folder = tmp_path_factory.mktemp("two_processes")
    return folder, launch(IN_TWO_PROCESSES, folder, media)


def test_run_benchmark_two_processes_equal_one_and_share_the_questions(two_processes, uninterrupted):
    folder, finished = two_processes
    assert (folder / "answered0").exists(), finished.stderr[-3000:]
    assert list(read_predictions(folder / "equal/predictions.jsonl")) == uninterrupted
    assert sorted(os.listdir(folder / "equal")) == [".lock", ".lock-owner", "predictions.jsonl", "settings.json"]
    shares = [(folder / f"answered{number}").read_text().split() for number in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == [str(number) for number in range(7)]
    assert sorted(map(len, shares)) == [3, 4]


def test_run_benchmark_failing_process_ends_all_processes(two_processes):
    _, finished = two_processes  # within its time limit
    assert finished.returncode != 0 and "RuntimeError: deliberate" in finished.stderr


def test_run_benchmark_folder_in_use_raises_and_keeps_its_answers(tmp_path, media, uninterrupted):
    refused = []

    def second_run(answer, question, *rest):
        if question.id == "4":
            with pytest.raises(ValueError, match=rf"{tmp_path} is in use by process {os.getpid()} on host"):
                run(tmp_path, media)
            refused.append(question.id)
        return read_answer(answer, question, *rest)

    assert run(tmp_path, media, reader=second_run) == uninterrupted
    assert refused == ["4"]


def test_run_benchmark_two_processes_folder_in_use_ends_both(tmp_path, media):
    program = f"from modeling_tests import test_evaluation_runner as t; t.run(t.Path({str(tmp_path / 'run')!r}), {media!r})"
    with locked_folder(tmp_path / "run"):
        finished = launch(program, tmp_path, media)
    assert finished.returncode != 0 and f"is in use by process {os.getpid()}" in finished.stderr


def test_run_benchmark_model_and_processor_of_different_checkpoints_raises(tmp_path, media):
    model, settings = model_for(tiny_processor(num_temporal_bins=50)), EvaluationSettings("made", "tiny")
    with pytest.raises(ValueError, match="do not belong together"):
        run_benchmark(questions_about(media), model, tiny_processor(), tmp_path, settings, read_answer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("written", ["settings.json", "predictions.jsonl", "part-000.jsonl"])
def test_run_benchmark_full_disk_names_the_file_and_resumes(tmp_path, media, uninterrupted, monkeypatch, written):
    """Simulates a full disk when this file is written."""

    def full(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.removeprefix(".") == written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(predictions_module.os, "fsync", full)
        with pytest.raises(OSError, match=rf"No space left on device: .*{written}"):
            run(tmp_path, media)
        assert not (tmp_path / "predictions.jsonl").exists()
        assert (tmp_path / "settings.json").exists() == (written != "settings.json")
    assert run(tmp_path, media) == uninterrupted


def test_append_predictions_full_device_names_the_file():
    row = Prediction("1", "made", "tvg", "When?", GroundingResult(span=(0, 1)))
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        append_predictions("/dev/full", [row])


@settings(max_examples=50, deadline=None)
@given(answer=st.text(st.characters(codec=None), max_size=40).filter(lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)))
def test_append_predictions_any_answer_is_read_back_equal(answer):
    """Tests lone surrogates, too; a pair of surrogates is one character in JSON."""
    row = Prediction("1\udc80", "made", "tr", "?", GroundingResult(caption="é"), answer=answer, prediction=GroundingResult(caption=answer))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "predictions.jsonl")
        append_predictions(path, [row, row])
        assert list(read_predictions(path)) == [row, row]
        assert "é" in path.read_text(encoding="utf-8")  # strict UTF-8


def run_counting(monkeypatch, folder: Path, questions: list[Question], **options) -> tuple[list[str], list[Prediction]]:
    """Returns the file names in the order in which they were read, and the predictions."""
    opened: list[str] = []

    def counting(read):
        def counted(source, *rest, **named):
            if isinstance(source, str):  # not an image that is already decoded
                opened.append(Path(source).name)
            return read(source, *rest, **named)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(video_processing_llava_st, "read_video_file", counting(video_processing_llava_st.read_video_file))
        patch.setattr(image_processing_llava_st, "load_image", counting(image_processing_llava_st.load_image))
        return opened, run(folder, {}, questions, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, media):
    """Returns nine alternating questions about two videos and an image, and the predictions of each question alone."""
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
def test_run_benchmark_reads_each_file_once(tmp_path, monkeypatch, shared, batch_size):
    questions, alone = shared
    opened, predictions = run_counting(monkeypatch, tmp_path, questions, batch_size=batch_size)
    assert opened == ["a.mp4", "b.mp4", "c.png"]
    assert predictions == alone


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_run_benchmark_encodes_each_file_once(tmp_path, monkeypatch, shared, batch_size):
    questions, alone = shared
    encoded = []
    features = modeling_llava_st.encode_frames

    def counting(tower, projector, pixels, *rest, **options):
        encoded.append(len(pixels))
        return features(tower, projector, pixels, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(modeling_llava_st, "encode_frames", counting)
        assert run(tmp_path, {}, questions, batch_size=batch_size) == alone
    assert sum(encoded) == 2 * 10 + 1  # two videos and an image, whatever the number of questions


def test_run_benchmark_reads_each_clip_of_a_file(tmp_path, monkeypatch, shared):
    first, *_ = shared[0]
    questions = [replace(first, id=str(number), prompt="When?", clip=(5 * (number % 2), 15)) for number in range(4)]
    opened, predictions = run_counting(monkeypatch, tmp_path, questions)
    assert opened == ["a.mp4", "a.mp4"]
    assert [prediction.media["first_frame"] for prediction in predictions] == [0, 5, 0, 5]


def test_run_benchmark_resumed_reads_only_remaining_files(tmp_path, monkeypatch, shared):
    questions, alone = shared

    def interrupted(answer, question, *rest):
        if question.id == "4":  # the second question about b.mp4
            raise KeyboardInterrupt
        return read_answer(answer, question, *rest)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {}, questions, reader=interrupted)
    opened, predictions = run_counting(monkeypatch, tmp_path, questions)
    assert opened == ["b.mp4", "c.png"]
    assert predictions == alone
    opened, predictions = run_counting(monkeypatch, tmp_path, questions)
    assert opened == [] and predictions == alone


def test_run_benchmark_invalid_question_is_skipped_and_others_are_answered(tmp_path, shared):
    questions, alone = shared
    impossible = replace(questions[3], prompt="What happens at <t99s>?")
    predictions = run(tmp_path, {}, [*questions[:3], impossible, *questions[4:]])
    assert "<t99s>" in predictions[3].skipped and predictions[3].media is None
    assert [p for p in predictions if p.id != "3"] == [p for p in alone if p.id != "3"]


def test_cli_eval_two_processes_equal_one(tmp_path):
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
    assert sorted(os.listdir(tmp_path / "two")) == [".lock", ".lock-owner", "predictions.jsonl", "scores.json", "settings.json"]
    assert main([*ask, str(tmp_path / "one")]) == 0
    for name in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert json.loads(finished.stdout) == json.loads((tmp_path / "one/scores.json").read_text())  # printed by one process only


def test_run_benchmark_unreadable_file_is_skipped_and_others_are_answered(tmp_path, media, uninterrupted):
    questions = questions_about(media)
    broken = Question("2", "tvg", str(tmp_path / "gone.mp4"), "video", "Where?", GroundingResult(span=(0, 1)))
    predictions = run(tmp_path, media, [*questions[:2], broken, *questions[3:]])
    assert "gone.mp4" in predictions[2].skipped and predictions[2].answer is None and predictions[2].media is None
    assert [p.answer for p in predictions if p.id != "2"] == [p.answer for p in uninterrupted if p.id != "2"]
    alone = run(tmp_path / "alone", media, [broken])
    assert alone[0].skipped and len(alone) == 1


def test_run_benchmark_folder_of_another_run_raises(tmp_path, media):
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


def test_run_benchmark_older_settings_file_resumes(tmp_path, media, uninterrupted):
    run(tmp_path, media)
    path = tmp_path / "settings.json"
    settings = json.loads(path.read_text())
    for name in ("video_backend", "allow_truncated", "dtype", "temperature", "prompt_decimals"):
        del settings[name]
    path.write_text(json.dumps(settings))
    (tmp_path / "predictions.jsonl").write_text((tmp_path / "predictions.jsonl").read_text().partition("\n")[0] + "\n")
    assert run(tmp_path, media) == uninterrupted
    with pytest.raises(ValueError, match="allow_truncated was False and is True"):
        run(tmp_path, media, reading={"allow_truncated": True})


def test_run_benchmark_truncated_file_is_skipped_or_noted(tmp_path, media):
    cut = Question("0", "tvg", str(write_cut(tmp_path / "cut.mkv")), "video", "When?", GroundingResult(span=(0.1, 0.5)))
    whole = replace(cut, id="1", path=media["video"])
    skipped, _ = run(tmp_path / "refused", media, [cut, whole], reader=read_own_answer)
    assert "cut short" in skipped.skipped
    noted, plain = run(tmp_path / "read", media, [cut, whole], reader=read_own_answer, reading={"allow_truncated": True})
    assert noted.skipped is None and "cut short" in noted.notes[0] and not any("cut short" in note for note in plain.notes)
    # The note is kept when the answers are parsed again, and the report draws the frames before the truncation.
    path = str(tmp_path / "read/predictions.jsonl")
    assert main(["score", path, "--answer-format", "seconds", "--output", str(tmp_path / "again")]) == 0
    assert "cut short" in next(read_predictions(tmp_path / "again/predictions.jsonl")).notes[0]
    assert draw_sample(noted)
    with pytest.raises(OSError, match="cut short"):
        draw_sample(replace(plain, path=cut.path))


def test_evaluation_settings_unknown_backend_raises():
    with pytest.raises(ValueError, match="video_backend must be one of"):
        EvaluationSettings("made", "tiny", video_backend="opencv")


def test_run_benchmark_progress_bar_shows_the_mean_overlap(tmp_path, media, capsys):
    def halves(answer, question, media, processor):  # half of each span, and no box
        return GroundingResult(span=(0.1, 0.3)), []

    run(tmp_path, media, reader=halves, show_overlap=True)
    assert "overlap 0.286" in capsys.readouterr().err  # four spans of IoU 0.5 among seven questions


@pytest.mark.parametrize("name", ["batch_size", "max_new_tokens"])
def test_evaluation_settings_below_1_raise(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        EvaluationSettings("made", "tiny", **{name: 0})


def test_read_predictions_invalid_line_raises_with_its_number(tmp_path):
    path = tmp_path / "predictions.jsonl"
    append_predictions(path, [Prediction("1", "made", "tvg", "When?", GroundingResult(span=(0, 1)))])
    with path.open("a") as file:
        file.write('{"id": 3}\n')
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 2 is not a valid prediction"):
        list(read_predictions(path))


@pytest.mark.parametrize("content, kept", [(b"", b""), (b"half", b""), (b"a\nhalf", b"a\n"), (b"a\nb\n", b"a\nb\n")])
def test_drop_broken_end_keeps_complete_lines(tmp_path, content, kept):
    path = tmp_path / "lines"
    path.write_bytes(content)
    drop_broken_end(path)
    assert path.read_bytes() == kept


def test_run_benchmark_is_greedy_for_any_generation_config(tmp_path, media, uninterrupted):
    processor = tiny_processor()
    model = model_for(processor)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    torch.manual_seed(99)
    settings = EvaluationSettings("made", "tiny", batch_size=2, max_new_tokens=6)
    assert run_benchmark(questions_about(media), model, processor, tmp_path, settings, read_answer, num_workers=1) == uninterrupted


SAMPLED = {"temperature": 5.0, "prompt_decimals": 3}


def test_run_benchmark_sampling_resumed_equals_uninterrupted(tmp_path, media, uninterrupted):
    whole = run(tmp_path / "whole", media, reading=SAMPLED)
    assert [prediction.answer for prediction in whole] != [prediction.answer for prediction in uninterrupted]
    assert whole[0].settings == {"dtype": "auto", "max_new_tokens": 6, "temperature": 5.0, "prompt_decimals": 3}
    seen = []

    def interrupted(*arguments):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(1)
        return read_answer(*arguments)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", media, reader=interrupted, reading=SAMPLED)
    torch.manual_seed(7)
    assert run(tmp_path / "resumed", media, reading=SAMPLED) == whole
    with pytest.raises(ValueError, match=r"temperature was 5\.0 and is None"):
        run(tmp_path / "whole", media)


@pytest.mark.parametrize("decimals", [None, 3])
def test_run_benchmark_prompt_decimals_rounds_the_values_of_prompts(tmp_path, media, monkeypatch, decimals):
    question = replace(questions_about(media)[0], prompt="What happens at <t0.123456>, near <h0.98765>?")
    values, generate = [], LlavaSTForConditionalGeneration.generate

    def watched(self, *args, **kwargs):
        values.extend(kwargs["coordinate_values"][kwargs["coordinate_values"].isfinite()].tolist())
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(LlavaSTForConditionalGeneration, "generate", watched)
    run(tmp_path, media, [question], reading={"prompt_decimals": decimals})
    assert values == pytest.approx([0.123456, 0.98765] if decimals is None else [0.123, 0.988], abs=1e-7)


def test_run_benchmark_model_of_another_dtype_than_the_settings_raises(tmp_path, media):
    with pytest.raises(ValueError, match=r"dtype='float16', but the model has weights of torch\.float32"):
        run(tmp_path, media, reading={"dtype": "float16"})


@pytest.mark.parametrize("values", [{"temperature": 0}, {"temperature": float("nan")}, {"prompt_decimals": -1}, {"prompt_decimals": 2.5}])
def test_evaluation_settings_invalid_temperature_or_decimals_raise(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        EvaluationSettings("made", "tiny", **values)


def test_cli_eval_as_published_generates_in_float16_and_records_the_settings(tmp_path, capsys):
    annotations, folder = MINIATURES["charades_sta"](tmp_path / "benchmark")
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    ask = ["eval", "--benchmark", "charades_sta", "--annotations", annotations, "--data-folder", folder, "--model", str(tmp_path / "model")]
    ask += ["--workers", "0", "--limit", "1", "--output", str(tmp_path / "out"), "--as-published"]
    assert main([*ask, "--max-new-tokens", "6"]) == 1
    assert "leave out --max-new-tokens" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(ask) == 0
    expected = {"dtype": "float16", "temperature": 0.01, "max_new_tokens": 1024, "prompt_decimals": 3}
    assert expected.items() <= json.loads((tmp_path / "out/settings.json").read_text()).items()
    (prediction,) = read_predictions(tmp_path / "out/predictions.jsonl")
    assert expected.items() <= prediction.settings.items()
    assert "settings of the published results" in json.loads((tmp_path / "out/scores.json").read_text())["default"]["notes"][0]
    assert main(["report", str(tmp_path / "out")]) == 0
    report = (tmp_path / "out/report.md").read_text()
    assert "sampling at temperature 0.01" in report and "rounded to 3 decimals" in report and "float16" in report
