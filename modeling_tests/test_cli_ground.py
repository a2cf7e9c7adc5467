# SPDX-License-Identifier: Apache-2.0
"""`llava-st ground` and `llava-st chat`: inputs, records, files that are resumed, text of others on a terminal."""

import io
import json
import os
import runpy
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from PIL import Image

import llava_st_hf
import llava_st_hf.cli
from llava_st_cli.arguments import parse
from llava_st_cli.main import main
from llava_st_cli.media_inputs import expand_media
from llava_st_cli.question_arguments import EXPORT_FORMATS
from llava_st_cli.question_arguments import TASKS as TASK_NAMES
from llava_st_cli.terminal import printable, to_json
from llava_st_hf.commands import ground
from llava_st_hf.commands.chat import Chat
from llava_st_hf.commands.records import print_table
from llava_st_hf.exports import FORMATS
from llava_st_hf.model.questions_llava_st import PreparedQuestion
from llava_st_hf.model.results_llava_st import Grounding
from llava_st_hf.model.session_llava_st import GroundingSession
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.version import __version__
from modeling_tests.media import moving_frames, write_video


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> str:
    return tiny_checkpoint


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Working folder with two videos, a file that is not a video, and another one, in the folder `videos`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for number, name in enumerate(("a", "c")):
        write_video(tmp_path / "videos" / f"{name}.mp4", moving_frames(6 + number, 32, 48), fps=10)
    (tmp_path / "videos/b.mp4").write_bytes(b"not a video")
    (tmp_path / "videos/notes.txt").touch()
    return tmp_path / "videos"


def print_to_terminal(monkeypatch) -> None:
    """Makes standard output of the test that calls it a terminal without colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Inputs


@pytest.mark.parametrize(
    ("given", "expected", "several"),
    [
        (["videos/a.mp4"], ["videos/a.mp4"], False),
        (["videos/c.mp4", "videos/a.mp4"], ["videos/c.mp4", "videos/a.mp4"], True),
        (["videos"], ["videos/a.mp4", "videos/b.mp4", "videos/c.mp4"], True),
        (["videos/[ac].mp4"], ["videos/a.mp4", "videos/c.mp4"], True),
        (["**/c.*"], ["videos/c.mp4"], True),
        (["frames"], ["frames"], False),
        (["frames/*.png"], ["frames/1.png", "frames/2.png"], True),
        (["fra*"], ["frames"], True),
        (["https://example.org/a*.mp4"], ["https://example.org/a*.mp4"], False),
        (["x[1].png"], ["x[1].png"], False),
    ],
)
def test_media_arguments_are_expanded_to_inputs(videos, given, expected, several):
    (videos.parent / "frames").mkdir()
    for name in ("frames/1.png", "frames/2.png", "x[1].png"):
        (videos.parent / name).touch()
    assert expand_media(given) == (expected, several)


@pytest.mark.parametrize(
    ("names", "message"), [(["a.MP4", "b.png"], r"both videos \(a.MP4\) and images \(b.png\)"), (["a.txt"], "neither")]
)
def test_folder_that_is_no_clear_input_raises(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises((ValueError, OSError), match=message):
        expand_media([str(tmp_path)])


def test_task_names_of_the_help_are_those_of_the_tasks():
    assert TASK_NAMES.keys() == TASKS.keys()


def test_export_formats_of_the_help_are_those_of_exports():
    assert set(EXPORT_FORMATS) == set(FORMATS)


# Records


def test_ground_several_inputs_prints_a_record_for_each_in_order(videos, model, capsys):
    question = ["--task", "tvg", "--text", "a dog runs", "--model", model, "--max-new-tokens", "3"]
    assert main(["ground", "videos", *question, "--batch-size", "2"]) == 1
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert [record["source"] for record in records] == ["videos/a.mp4", "videos/b.mp4", "videos/c.mp4"]
    assert records[1].keys() == {"source", "error"} and "cannot be read as a video" in records[1]["error"]
    assert captured.err.splitlines()[-1] == f"llava-st: {records[1]['error']}"
    for record in (records[0], records[2]):
        assert main(["ground", record["source"], *question]) == 0
        assert json.loads(capsys.readouterr().out) == record


def test_ground_jsonl_resumes_and_never_answers_twice(videos, model, monkeypatch, capsys):
    question = ["ground", "videos/[ac].mp4", "--task", "tvg", "--text", "a dog runs", "--model", model, "--max-new-tokens", "3"]
    question += ["--draw", "{name}.png"]
    assert main([*question, "--jsonl", "answers.jsonl"]) == 0
    assert capsys.readouterr().out == ""
    pictures = [videos.parent / "a.png", videos.parent / "c.png"]
    drawn = [picture.stat().st_mtime_ns for picture in pictures]
    written = (videos.parent / "answers.jsonl").read_text()
    records = [json.loads(line) for line in written.splitlines()]
    assert [record["source"] for record in records] == ["videos/a.mp4", "videos/c.mp4"]
    assert [Grounding.from_dict(record).source for record in records] == ["videos/a.mp4", "videos/c.mp4"]
    assert records[0].pop("settings") == {"model": model, "task": "tvg", "text": "a dog runs", "max_new_tokens": 3}
    # A process that was killed while it wrote the second line.
    first, second = written.splitlines(keepends=True)
    (videos.parent / "answers.jsonl").write_text(first + second[:50])
    prepared = []
    prepare = ground.prepare_question
    monkeypatch.setattr(
        ground, "prepare_question", lambda processor, source, **k: prepared.append(source) or prepare(processor, source, **k)
    )
    assert main([*question, "--jsonl", "answers.jsonl", "--json"]) == 0
    captured = capsys.readouterr()
    assert prepared == ["videos/c.mp4"] and (videos.parent / "answers.jsonl").read_text() == written
    assert [json.loads(line) for line in captured.out.splitlines()] == [
        {name: value for name, value in json.loads(line).items() if name != "settings"} for line in written.splitlines()
    ]
    assert [picture.stat().st_mtime_ns > before for picture, before in zip(pictures, drawn, strict=True)] == [False, True]
    assert "the incomplete last line of an interrupted call is removed" in captured.err and "1 of 2 inputs already" in captured.err
    # Another question is answered, and appended.
    assert main([*question, "--scores", "--jsonl", "answers.jsonl"]) == 0
    assert prepared == ["videos/c.mp4", "videos/a.mp4", "videos/c.mp4"]
    assert (videos.parent / "answers.jsonl").read_text().startswith(written)


@pytest.mark.parametrize("content", ["a list of films", '{"id": 1}\n', '{"source": 1, "settings": {}}\n'])
def test_ground_jsonl_of_another_program_is_not_changed(videos, model, capsys, content):
    (videos.parent / "other.jsonl").write_text(content)
    assert main(["ground", "videos/a.mp4", "--text", "x", "--model", model, "--jsonl", "other.jsonl"]) == 1
    assert "--jsonl other.jsonl, line 1 is not" in capsys.readouterr().err
    assert (videos.parent / "other.jsonl").read_text() == content


def test_ground_out_of_memory_answers_a_batch_one_by_one():
    sizes = []

    def grounder(questions, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 1 or questions[0]["medium"] == "large":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [{"text": questions[0]["medium"]}]

    args = Namespace(several=True, max_new_tokens=None, scores=False, grammar=None)
    questions = [PreparedQuestion(medium=name) for name in ("small", "large")]
    answer, failure = ground._generate(grounder, questions, args)
    assert sizes == [2, 1, 1] and answer == {"text": "small"} and failure["error"].startswith("Out of memory: CUDA out of memory")
    args.several = False
    with pytest.raises(MemoryError, match="Out of memory"):
        ground._generate(grounder, questions[1:], args)


def test_ground_draws_each_answer_and_exports_all(videos, model, monkeypatch, capsys):
    drawn, exported = {}, []

    def draw(medium, answer, output, fps, scale):
        drawn[medium] = output
        if medium == "videos/c.mp4":
            raise ValueError("no room")
        assert answer.source == medium and fps is None and scale is None

    monkeypatch.setattr(llava_st_hf, "draw", draw, raising=False)
    monkeypatch.setattr(llava_st_hf, "export", lambda answers, path, format: exported.append((answers, path, format)), raising=False)
    monkeypatch.setattr(ground, "find_spec", lambda name: name)
    question = [
        "ground",
        "videos",
        "--task",
        "tvg",
        "--text",
        "a dog runs",
        "--model",
        model,
        "--max-new-tokens",
        "3",
        "--jsonl",
        "a.jsonl",
    ]
    output = ["--draw", "{name}-drawn.png", "--export", "csv", "--export-to", "answers.txt"]
    for _ in range(2):  # the second time with answers of the file
        assert main([*question, *output]) == 1
        assert drawn == {"videos/a.mp4": "a-drawn.png", "videos/c.mp4": "c-drawn.png"}
        ((answers, path, format),) = exported
        assert ([answer.source for answer in answers], path, format) == (["videos/a.mp4", "videos/c.mp4"], "answers.txt", "csv")
        failures = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llava-st: videos/")]
        assert len(failures) == 2 and failures[1] == "llava-st: videos/c.mp4: --draw c-drawn.png: no room"
        exported.clear()
    monkeypatch.setattr(ground, "find_spec", lambda name: None)
    assert main([*question, *output]) == 1
    assert "--draw needs supervision: pip install 'llava-st-hf[draw]'." in capsys.readouterr().err


def test_ground_windows_all_and_refine_are_answered_from_the_files(videos, model, monkeypatch, capsys):
    calls = []

    def grounder(source, **options):
        if source.endswith("b.mp4"):
            raise ValueError(f"{source}: window=1.0 is too long.")
        calls.append((source, options))
        return {"text": "", "events": [], "notes": [], "media": None}

    monkeypatch.setattr(ground, "load_pipeline", lambda args, processor: grounder)
    question = ["ground", "videos", "--task", "tvg", "--text", "a dog", "--model", model, "--batch-size", "4"]
    assert main([*question, "--window", "1", "--overlap", "0.5", "--all", "--refine", "detector"]) == 1
    failures = [record["error"] for record in lines(capsys) if "error" in record]
    assert failures == ["videos/b.mp4: --window=1.0 is too long."]
    asked = {"text": "a dog", "task": "tvg", "window": 1.0, "overlap": 0.5, "all": True, "refine": "detector", "batch_size": 4}
    assert calls == [("videos/a.mp4", asked), ("videos/c.mp4", asked)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a computer without a GPU")
def test_ground_device_that_does_not_exist_raises_before_loading(videos, model, capsys):
    assert main(["ground", "videos/a.mp4", "--text", "x", "--model", model, "--device", "cuda:1"]) == 1
    assert "--device cuda:1 is not available: PyTorch" in capsys.readouterr().err


# Text of others


def test_printed_json_has_the_same_values_without_control_characters():
    value = {"caption": "\x1b[2Jred\x9b31m\x7f\u202e\ud800é\n", "list": ["\u2066"]}
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isprintable() and "é" in text
    assert printable("a\x1b]0;b\x07\tc\n") == "a\\x1b]0;b\\x07\tc\n"


def test_table_on_a_terminal_shows_events_and_no_control_sequences(monkeypatch, capsys):
    print_to_terminal(monkeypatch)
    media = {"kind": "video", "width": 10, "height": 10, "fps": 10.0, "first_frame": 0, "last_frame": 99}
    event = {"start": 1.26, "end": None, "caption": "a \x1b[31mdog\x1b[0m [bold]runs[/bold]", "boxes": []}
    record = {
        "source": "\x1b]0;x\x07.mp4",
        "text": "",
        "events": [event],
        "notes": ["\x9bnote"],
        "media": media,
        "task": "tvg",
        "query": "q",
    }
    print_table(record)
    shown = capsys.readouterr().out
    assert not any(character < " " and character != "\n" for character in shown) and "\x9b" not in shown
    assert "\\x1b]0;x\\x07.mp4 · tvg · q" in shown and "Note: \\x9bnote" in shown
    heading, row = shown.splitlines()[1:3]
    assert heading.split() == ["start", "end", "boxes", "caption"]
    assert row.split(maxsplit=4) == ["1.260", "s", "–", "s", "0  a \\x1b[31mdog\\x1b[0m [bold]runs[/bold]"]


def test_ground_on_a_terminal_prints_a_table_and_with_json_the_dictionary(videos, model, monkeypatch, capsys):
    print_to_terminal(monkeypatch)
    Image.new("RGB", (64, 48)).save("image.png")
    box = {"xmin": 1.0, "ymin": 2.25, "xmax": 30.04, "ymax": 48.0}
    event = {"caption": "dog", "boxes": [{"box": box, "score": 0.756}, {"box": box, "score": 0.5}], "score": 0.756}
    answer = {
        "text": "",
        "events": [event],
        "notes": [],
        "media": {"kind": "image", "width": 64, "height": 48},
        "task": "rec",
        "query": "dog",
    }
    monkeypatch.setattr(ground, "load_pipeline", lambda args, processor: lambda questions, **options: [answer])
    question = ["ground", "image.png", "--task", "rec", "--text", "dog", "--model", model]
    assert main(question) == 0
    heading, *table = capsys.readouterr().out.splitlines()
    assert heading == "image.png · rec · dog"
    edges, names = ["1.0", "2.2", "30.0", "48.0"], ["x1", "y1", "x2", "y2", "score", "caption"]
    assert [line.split() for line in table] == [names, [*edges, "0.76", "dog"], [*edges, "0.50", "dog"], []]
    assert main([*question, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"source": "image.png", **answer}


# Chat


def chat(monkeypatch, *argv, questions: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
    return main(["chat", *argv])


def test_chat_from_a_pipe_prints_a_line_for_each_question(videos, model, monkeypatch, capsys):
    from transformers import pipeline

    follow_ups = []
    stream = GroundingSession.stream

    def recorded(session, follow_up=False, **question):
        follow_ups.append(follow_up)
        return stream(session, follow_up, **question)

    monkeypatch.setattr(GroundingSession, "stream", recorded)
    argv = ["videos/a.mp4", "--model", model, "--max-new-tokens", "3"]
    questions = "What is it?\n\nAnd then?\n/task tvg\na dog\n/span 0.1 0.4\nA dog\n/reset\nAnd then?\n/span x\n/nonsense\n/quit\nnot read\n"
    assert chat(monkeypatch, *argv, questions=questions) == 1
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    grounder = pipeline("video-grounding", model=model)
    with grounder.open("videos/a.mp4", max_new_tokens=3) as session:
        expected = [
            session.ask(text="What is it?"),
            session.follow_up(text="And then?"),
            session.ask(text="a dog", task="tvg"),
            {"query": "A dog", "error": "task='tvg' takes text: span is not used."},
            session.ask(text="And then?"),
            {"query": "/span x", "error": "/span takes 2 numbers, or none to remove it; got x."},
        ]
    assert answers == [{"source": "videos/a.mp4", **answer} for answer in expected]
    assert follow_ups == [False, True, False, False, False]
    assert [line for line in captured.err.splitlines() if line.startswith("llava-st: ")] == [
        f"llava-st: {expected[3]['error']}", f"llava-st: {expected[5]['error']}", "llava-st: /nonsense is not a command. /help lists them.",
    ]  # fmt: skip


def test_chat_on_a_terminal_prints_text_while_it_is_generated(videos, model, monkeypatch, capsys):
    print_to_terminal(monkeypatch)
    argv = ["videos/a.mp4", "--model", model, "--max-new-tokens", "3"]
    assert chat(monkeypatch, *argv, "--json", questions="What?\n") == 0
    (answer,) = lines(capsys)
    assert chat(monkeypatch, *argv, questions="What?\n") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].strip() == printable(answer["text"]) and f"Note: {answer['notes'][0]}" in shown


def test_chat_medium_is_read_before_the_weights(videos, model, monkeypatch, capsys):
    monkeypatch.setattr("llava_st_hf.commands.chat.load_pipeline", lambda *args: pytest.fail("must not load"))
    assert chat(monkeypatch, "videos/b.mp4", "--model", model, questions="x") == 1
    assert "cannot be read as a video" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["/task tvgg", "/task tvg stvg", "/span 1", "/box 1 2 3 nan", "/time 1 2", "/nonsense"])
def test_chat_invalid_commands_raise_and_change_nothing(line):
    questions = Chat(session=None)
    for valid in ("/task elc", "/box 1 2 3 4", "/time 1.5", "/span 1 2", "/span"):
        questions.set(valid)
    with pytest.raises(ValueError, match=line.split()[0]):
        questions.set(line)
    assert questions.values == {"task": "elc", "box": [1, 2, 3, 4], "time": 1.5}


# Ends


def test_interrupted_command_returns_130_with_one_line(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(llava_st_hf.cli, "run", interrupt)
    assert main(["report", "."]) == 130
    assert capsys.readouterr().err == "llava-st: Interrupted.\n"


@pytest.mark.parametrize("error", [RuntimeError("two\nlines \x1b[2J"), BrokenPipeError(32, "Broken pipe")])
def test_unexpected_error_is_one_line_and_with_debug_a_traceback(monkeypatch, capsys, error):
    def fail(args):
        raise error

    monkeypatch.setattr(llava_st_hf.cli, "run", fail)
    monkeypatch.delenv("LLAVA_ST_DEBUG", raising=False)
    assert main(["report", "."]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    if isinstance(error, RuntimeError):
        assert line == "llava-st: RuntimeError: two lines \\x1b[2J (LLAVA_ST_DEBUG=1 prints the traceback.)"
    else:
        assert line.startswith("llava-st: ") and "Broken pipe" in line
    assert main(["--debug", "report", "."]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("LLAVA_ST_DEBUG", "1")
    assert main(["report", "."]) == 1
    assert "Traceback" in capsys.readouterr().err


def run_process(*argv, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "llava_st_cli.main", *argv], capture_output=True, text=True, **options)


def test_reader_of_stdout_that_has_ended_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as stdout:
        run = subprocess.run([sys.executable, "-m", "llava_st_cli.main", "recipes"], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert run.stderr == "" and run.returncode == 1


def test_shell_completion_lists_commands_and_values_without_torch():
    environment = {**os.environ, "_LLAVA_ST_COMPLETE": "complete_bash"}
    for words, found in (("llava-st gr", "ground"), ("llava-st ground --ta", "--task"), ("llava-st ground --task st", "stvg")):
        run = run_process("-X", env={**environment, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)})
        assert found in run.stdout.split() and not run.stderr


def test_python_m_runs_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["llava_st_hf", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("llava_st_hf", run_name="__main__")
    assert capsys.readouterr().out == f"llava-st {__version__}\n"


def test_debug_option_is_before_the_command():
    assert parse(["--debug", "report", "f"]).debug and not parse(["report", "f"]).debug


# Refusals before a model is loaded


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["score", "nope"], 1, "The predictions nope are not a file or folder"),
        (["report", "nope"], 1, "nope is not a folder"),
        (["merge-lora", "nope", "out"], 1, "The adapter nope is not a folder"),
        (
            ["ground", "videos/a.mp4", "--text", "hi", "--model", "nope/x"],
            1,
            "nope/x is not a folder and not a model of the Hugging Face Hub",
        ),
        (["ground", "videos/a.mp4", "--text", "hi", "--model", "/nope/x/y"], 1, "/nope/x/y is not a folder, and not the id of a model"),
        (
            ["ground", "photo.png", "--text", "hi", "--draw", "p.mp4"],
            1,
            "photo.png is an image, whose drawing must end in .png, .jpg, .jpeg",
        ),
        (["ground", "videos/a.mp4", "--text", "hi", "--scale", "2"], 1, "--scale 2 must be a number above 0 and at most 16, with --draw"),
        (["ground", "videos/a.mp4", "--text", "hi", "--task", "foo"], 2, "'foo' is not a task; it must be one of rec, reg"),
        (["groun", "videos/a.mp4"], 2, "Did you mean 'ground'? See `llava-st --help`"),
        (["app", "--host", "no such host"], 1, "host='no such host' is not a name or address of this computer"),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else None,
)
def test_refused_arguments_are_one_line_with_the_reason(arguments, status, message, videos, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(ground, "load_pipeline", None)
    Image.new("RGB", (40, 30)).save("photo.png")
    try:
        found = main(arguments)
    except SystemExit as error:
        found = error.code
    error = capsys.readouterr().err
    assert (found, message in error) == (status, True), error


def test_ground_unreachable_hub_is_asked_once(videos, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(ground.LlavaSTProcessor, "from_pretrained", None)
    assert main(["ground", "videos/a.mp4", "--text", "hi", "--model", "nope/x"]) == 1
    error = capsys.readouterr().err
    assert "nope/x is not a folder and not a model of the Hugging Face Hub" in error and "the hub cannot be reached" in error
