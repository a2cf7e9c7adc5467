# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_st_cli.arguments import app, parse
from llava_st_cli.renamed import rename
from llava_st_hf import LlavaSTProcessor
from llava_st_hf.cli import main
from llava_st_hf.version import __version__
from modeling_tests.factories import tiny_config
from modeling_tests.media import write_cut, write_video
from modeling_tests.processors import model_for, tiny_processor
from modeling_tests.reference import ORIGINAL_CHECKPOINT, ORIGINAL_LORA, REFERENCE


OVERRIDES = REFERENCE / "tiny" / "config_overrides.json"


@pytest.fixture
def clip(tmp_path) -> str:
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", frames, fps=10)
    return str(tmp_path / "clip.mp4")


@pytest.fixture(scope="module")
def model(tiny_checkpoint) -> str:
    return tiny_checkpoint


def test_ground_prints_one_json_answer(clip, model, capsys):
    question = ["--task", "svg", "--text", "a dog runs", "--span", "0.2", "0.8", "--max-new-tokens", "4"]
    assert main(["ground", clip, "--model", model, *question]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"source", "text", "events", "notes", "media", "task", "query"}
    assert (answer["source"], answer["task"], answer["query"]) == (clip, "svg", "a dog runs")


def test_ground_missing_video_prints_one_line_on_stderr_and_returns_1(model, capsys):
    assert main(["ground", "nowhere.mp4", "--model", model, "--text", "hm"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("llava-st: ") and "nowhere.mp4" in captured.err


def test_ground_start_and_end_in_seconds_select_a_clip(clip, model, capsys):
    question = ["ground", clip, "--model", model, "--text", "When?", "--max-new-tokens", "2"]
    assert main([*question, "--start", "0.2", "--end", "0.8"]) == 0
    capsys.readouterr()
    assert main([*question, "--start", "0.2", "--end", "9"]) == 1
    assert "lies beyond the end" in capsys.readouterr().err


def test_ground_video_backend_and_allow_truncated_are_applied(clip, model, tmp_path, capsys):
    asked = ["--model", model, "--text", "When?", "--max-new-tokens", "2"]
    assert main(["ground", clip, *asked, "--video-backend", "decord"]) == 0
    capsys.readouterr()
    assert main(["ground", clip, *asked, "--video-backend", "opencv"]) == 1
    assert "video_backend must be one of 'pyav', 'decord'" in capsys.readouterr().err
    cut = str(write_cut(tmp_path / "cut.mkv"))
    assert main(["ground", cut, *asked]) == 1
    assert "cut.mkv is cut short" in (message := capsys.readouterr().err) and "--allow-truncated" in message
    assert main(["ground", cut, *asked, "--allow-truncated"]) == 0
    assert "cut short" in json.loads(capsys.readouterr().out)["notes"][0]


def test_ground_folder_of_frames_uses_the_given_frame_rate(clip, model, tmp_path, capsys):
    (tmp_path / "frames").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48), (number * 60, 0, 0)).save(tmp_path / "frames" / f"{number}.png")
    question = ["--model", model, "--task", "tr", "--span", "0", "1.5", "--max-new-tokens", "2"]
    assert main(["ground", str(tmp_path / "frames"), *question, "--fps", "2"]) == 0
    assert main(["ground", str(tmp_path / "frames"), *question, "--fps", "4"]) == 1
    assert "is outside the clip, which lasts from 0 to 1 seconds" in capsys.readouterr().err
    assert main(["ground", str(tmp_path / "frames"), *question]) == 1
    assert "the frame rate of the video is unknown" in capsys.readouterr().err
    assert main(["ground", clip, *question, "--fps", "2"]) == 1
    assert "can only be given for a list or folder of frames" in capsys.readouterr().err


def refusal(capsys, *argv) -> str:
    assert main(list(map(str, argv))) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("llava-st: ")]
    assert captured.out == "" and len(lines) == 1 and captured.err.splitlines()[-1] == lines[0]
    return lines[0]


def test_ground_max_new_tokens_0_is_an_error(capsys):
    assert "--max-new-tokens must be at least 1, got 0" in refusal(
        capsys, "ground", __file__, "--model", "m", "--text", "x", "--max-new-tokens", 0
    )


# Before the model is loaded


@pytest.fixture
def unloadable_model(tmp_path_factory):
    """A checkpoint with unreadable weights: any other error must have been raised before the weights are loaded."""
    folder, processor = tmp_path_factory.mktemp("model"), tiny_processor()
    model_for(processor).config.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


@pytest.mark.parametrize(
    "options, message",
    [
        (["--task", "tvg"], "--task tvg takes --text: --text is missing."),
        (["--task", "tr", "--span", 0, 1, "--text", "x"], "--task tr takes --span: --text is not used."),
        (["--task", "elc", "--span", 0, 1], "--task elc takes --time and --box: --box is missing."),
        (["--task", "rec", "--text", "x"], "task='rec' is a task for images, but the input is a video"),
        (["--task", "tr", "--span", 1, 0.5], "The span from 1 to 0.5 seconds"),
        (["--task", "tr", "--span", 0.5, 99], "--span=(0.5, 99.0) is outside the clip, which lasts from 0 to 1.2 seconds."),
        (["--text", "x", "--clip", 0, 99], "clip frames [0, 99]"),
        (["--text", "x", "--fps", 2], "fps can only be given for a list or folder of frames"),
        (["--text", "x", "--video-backend", "opencv"], "video_backend must be one of"),
        (["--text", "x"], "Error while deserializing header"),  # valid arguments: the weights are loaded
    ],
)
def test_ground_invalid_arguments_raise_before_weights_are_loaded(clip, unloadable_model, capsys, options, message):
    try:
        line = refusal(capsys, "ground", clip, "--model", unloadable_model, *options)
    except Exception as error:  # raised by safetensors
        line = str(error)
    assert message in line


def test_ground_mismatched_model_and_processor_raise_before_weights_are_loaded(clip, unloadable_model, capsys):
    tiny_processor(num_temporal_bins=50).save_pretrained(unloadable_model)
    assert "do not belong together" in refusal(capsys, "ground", clip, "--model", unloadable_model, "--text", "x")


# Without torch


def run_all(lines: list[list]) -> list[dict]:
    """Runs command lines in one new process: status, stdout and stderr of each, and the modules that are imported after the last one."""
    code = (
        "import contextlib, io, json, sys\nfrom llava_st_cli.main import main\nruns = []\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "        try:\n            status = main(argv)\n"
        "        except SystemExit as stop:\n            status = stop.code\n"
        "    runs.append({'status': status, 'out': out.getvalue(), 'err': err.getvalue()})\n"
        "print(json.dumps([*runs, {'modules': list(sys.modules)}]))"
    )
    argv = json.dumps([list(map(str, line)) for line in lines])
    run = subprocess.run([sys.executable, "-c", code, argv], capture_output=True, text=True, check=True)
    *runs, last = json.loads(run.stdout)
    assert not set(last["modules"]) & {"torch", "transformers", "numpy", "llava_st_hf", "rich"}
    return runs


COMMANDS = sorted(command.name for command in app.registered_commands)


def test_help_and_usage_errors_do_not_import_torch():
    helps = [["--help"], *([command, "-h"] for command in COMMANDS), ["--version"]]
    wrong = [
        ["ground"],
        [],
        ["nonsense"],
        ["eval", "--what"],
        ["ground", "a", "--span", 1],
        ["merge-lora", "a"],
        ["train", "--bf16", "true"],
    ]
    runs = run_all([*helps, *wrong])
    for run in runs[: len(helps)]:
        assert run["status"] == 0 and run["out"] and not run["err"]
    for run in runs[len(helps) :]:
        (line,) = run["err"].splitlines()
        assert run["status"] == 2 and not run["out"] and line.startswith("llava-st: ") and line.endswith("--help`.")
    assert runs[len(helps) - 1]["out"] == f"llava-st {__version__}\n"
    assert "train --help" in runs[-1]["err"] and "Give the recipe first" in runs[-1]["err"]


EVAL = ["eval", "--benchmark", "jsonl", "--annotations", __file__, "--data-folder", ".", "--model", "m", "--output", "o"]
GROUND = ["ground", __file__, "--text", "x"]
INVALID = [
    (["ground", __file__], "The question is missing: give --text, or --task."),
    (["ground", __file__, "--text", " "], "--text must not be blank, got ' '."),
    ([*GROUND, "--span", 0, 1], "--span needs --task."),
    ([*GROUND, "--clip", 0, 1, "--end", 1], "--clip cannot be combined with --start or --end"),
    (["ground", "nowhere.mp4", "--text", "x"], "No such file or folder: nowhere.mp4"),
    (["ground", "nowhere*.mp4", "--text", "x"], "No file matches the pattern nowhere*.mp4."),
    ([*GROUND, "--max-new-tokens", 0], "--max-new-tokens must be at least 1, got 0."),
    ([*GROUND, "--batch-size", 0], "--batch-size must be at least 1, got 0."),
    ([*GROUND, "--device", "gpu"], "--device gpu is not a device; it must be cpu, cuda, "),
    ([*GROUND, "--draw", "out.avi"], "--draw out.avi must end in one of .mp4, "),
    ([*GROUND, "--draw", "nowhere/out.mp4"], "the folder nowhere does not exist"),
    ([*GROUND, __file__, "--draw", "out.mp4"], "--draw out.mp4 is one file for several inputs. Write {name} into it"),
    ([*GROUND, f"{Path(__file__).parent}/../modeling_tests/test_cli.py", "--draw", "{name}.mp4"], "gives one file, test_cli.mp4, for both"),
    ([*GROUND, "--draw", Path(__file__).parents[1] / "docs/images/demo.png"], "demo.png exists. Give another path, or --overwrite."),
    ([*GROUND, "--export", "coco"], "--export coco is not a format; it must be one of coco-video, "),
    ([*GROUND, "--export", "cvat"], "--export cvat needs --export-to"),
    ([*GROUND, "--export-to", "a.json"], "--export-to a.json: its suffix does not decide the format."),
    ([*GROUND, __file__, "--export-to", "a.srt"], "--export-to a.srt: subtitles are those of one video, but there are 2 inputs."),
    ([*GROUND, "--task", "tvg", "--window", 0], "--window must be a positive number of seconds, got 0."),
    ([*GROUND, "--task", "tvg", "--window", 2, "--overlap", 2], "--overlap 2 needs --window with a larger number of seconds."),
    ([*GROUND, "--all"], "--all is for --task tvg and --task stvg, got no task."),
    ([*GROUND, "--jsonl", "."], "--jsonl . is a folder; give the path of a file."),
    (["chat", "nowhere.mp4"], "No such file or folder: nowhere.mp4"),
    (["chat", __file__, "--clip", 0, 1, "--start", 1], "--clip cannot be combined with --start or --end"),
    (["check-data", "nowhere.yaml"], "The mixture nowhere.yaml is not a file."),
    (["check-data", __file__, "--num-frames", 0], "--num-frames must be at least 1, got 0."),
    ([*EVAL, "--limit", 0], "--limit must be at least 1, got 0."),
    ([*EVAL, "--batch-size", -1], "--batch-size must be at least 1, got -1."),
    ([*EVAL, "--workers", -1], "--workers must be at least 0, got -1."),
    ([*EVAL, "--annotations", "nowhere.json"], "--annotations nowhere.json is not a file."),
    ([*EVAL, "--data-folder", "nowhere"], "--data-folder nowhere is not a folder."),
    ([*EVAL, "--output", __file__], "is a file; give a folder."),
    (["score", "p", "--references", __file__], "--references needs --answer-format"),
    (["score", "p", "--references", "nowhere", "--answer-format", "qwen3_vl"], "--references nowhere is not a file."),
    (["convert", "m", __file__], "is a file; give a folder."),
]


def test_invalid_arguments_raise_without_importing_torch():
    for run, (argv, message) in zip(run_all([argv for argv, _ in INVALID]), INVALID, strict=True):
        (line,) = run["err"].splitlines()
        assert run["status"] == 1 and not run["out"] and line.startswith("llava-st: ") and message in line, argv


# Names of version 0.1


@pytest.mark.parametrize("old, new", [("validate", "check-data"), ("start-stage1", "create-stage1")])
def test_old_command_runs_the_new_one_with_a_warning(tmp_path, capsys, old, new):
    argv = [tmp_path / "nowhere", *[tmp_path / "out"] * (old == "start-stage1")]
    with pytest.warns(FutureWarning, match=f"llava-st {old} is now llava-st {new}; the old name will be removed in version 0.3"):
        found = refusal(capsys, old, *argv)
    assert found == refusal(capsys, new, *argv)


def test_old_options_set_the_new_ones_with_a_warning():
    common = ["eval", "--benchmark", "b", "--annotations", "a", "--model", "m", "--output", "o"]
    with pytest.warns(FutureWarning, match="--media is now --data-folder"):
        assert parse(rename([*common, "--media", "f"])).data_folder == "f"
    with pytest.warns(FutureWarning) as warned:
        args = parse(rename(["score", "p", "--reader", "seconds", "--rows=r", "--protocol", "released"]))
    assert (args.answer_format, args.references, args.protocol) == ("seconds", "r", "original")
    assert [str(warning.message).split(";")[0] for warning in warned] == [
        "--reader is now --answer-format", "--rows is now --references", "--protocol released is now --protocol original",
    ]  # fmt: skip
    with pytest.warns(FutureWarning, match="--protocol released is now --protocol original"):
        assert parse(rename(["score", "p", "--protocol=released"])).protocol == "original"


def test_old_names_are_not_in_the_help(capsys):
    for argv in ([], ["ground"], ["eval"], ["score"]):
        with pytest.raises(SystemExit, match="0"):
            parse([*argv, "--help"])
    text = capsys.readouterr().out
    for old in ("validate", "start-stage1", "--media ", "--reader", "--rows", "released"):
        assert old not in text
    assert "--data-folder FOLDER" in text and "--answer-format NAME" in text and "Other name: predict" in text


def test_new_options_give_no_warning(recwarn):
    argv = ["score", "p", "--answer-format", "seconds", "--references", "r", "--protocol", "original"]
    assert rename(argv) == argv and rename(["ground", "validate", "--rows"]) == ["ground", "validate", "--rows"]
    assert not recwarn.list


def test_predict_is_the_command_ground():
    argv = ["a.mp4", "--task", "tr", "--span", "0", "1.5", "--clip", "2", "9", "--box", "1", "2", "3", "4", "--start", "-0.5"]
    args = parse(["predict", *argv])
    assert args == parse(["ground", *argv]) and args.command == "ground"
    assert (args.span, args.clip, args.box, args.start) == ((0.0, 1.5), (2, 9), (1.0, 2.0, 3.0, 4.0), -0.5)


def test_server_commands_pass_their_options(monkeypatch, tmp_path):
    calls = []
    for module, name in (("app", "run"), ("integrations.label_studio", "label_studio"), ("integrations.cvat", "cvat")):
        target = f"llava_st_hf.{module}.command.{name}"
        monkeypatch.setattr(target, create_autospec(resolve_name(target), side_effect=lambda *args, **kwargs: calls.append((args, kwargs))))
    on_cpu = {"device": "cpu", "dtype": "auto"}
    assert main(["app", "--port", "0", "--device", "cpu"]) == 0
    assert calls.pop() == ((None, "127.0.0.1", 0), on_cpu)
    assert main(["label-studio", "--model", str(tmp_path), "--media", ".", "--device", "cpu"]) == 0
    options = {"host": "127.0.0.1", "port": 9090, "media": ".", "label_studio_url": None, "text_key": "text"}
    assert calls.pop() == ((str(tmp_path),), {**options, **on_cpu})
    assert main(["cvat", "--task", "1", "--task", "2", "--dtype", "bfloat16", "--device", "cpu"]) == 0
    assert calls.pop() == ((None, "http://localhost:8080", [1, 2], None, None), {**on_cpu, "dtype": "bfloat16"})


def test_server_commands_refuse_an_adapter_and_several_devices(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a full model" in refusal(capsys, "app", "--model", tmp_path)
    assert "a server runs on one device" in refusal(capsys, "cvat", "--task", 1, "--device", "auto")


def test_merge_lora_base_is_optional():
    with_base, without = parse(["merge-lora", "b", "a", "o", "--processor", "p"]), parse(["merge-lora", "a", "o"])
    assert (with_base.base, with_base.adapter, with_base.output, with_base.processor) == ("b", "a", "o", "p")
    assert (without.base, without.adapter, without.output, without.processor) == (None, "a", "o", None)


def test_commands_given_an_adapter_instead_of_a_model_raise(clip, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    ground = ["ground", clip, "--text", "x", "--model", tmp_path]
    for argv in (ground, ["convert", tmp_path, "out"], ["merge-lora", tmp_path, tmp_path, "out"]):
        assert "is an adapter, not a full model" in refusal(capsys, *argv)


def test_convert_and_merge_lora_output_that_is_a_file_raises_before_loading(tmp_path, capsys):
    (tmp_path / "out").touch()
    for argv in (["convert", "nowhere", tmp_path / "out"], ["merge-lora", "nowhere", "nowhere", tmp_path / "out"]):
        assert "out is a file" in refusal(capsys, *argv)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "must hold a JSON object"),
        ("{", "is not valid JSON"),
        ('{"packer_width": 3}', "sets packer_width, which"),
        ('{"text_config": {"layers": 3}}', "sets text_config.layers, which"),
        ('{"packer_spatial_stride": "three"}', "does not fit .*packer_spatial_stride"),
        ('{"packer_spatial_stride": 7}', "packer_spatial_stride=7 does not divide"),
    ],
)
def test_convert_invalid_config_overrides_raise_before_weights_are_loaded(tmp_path, capsys, content, message):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "overrides.json").write_text(content)
    line = refusal(capsys, "convert", tmp_path, tmp_path / "out", "--config-overrides", tmp_path / "overrides.json")
    assert "overrides.json" in line and re.search(message, line)


def test_convert_original_checkpoint_writes_a_folder_that_auto_classes_load(tmp_path):
    assert main(["convert", str(ORIGINAL_CHECKPOINT), str(tmp_path), "--config-overrides", str(OVERRIDES)]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_st"
    assert "model.packer.spatial.q_proj.weight" in load_file(tmp_path / "model.safetensors")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).config.disable_fast_stream
    assert LlavaSTProcessor.from_pretrained(tmp_path).ignore_prompt_x_coordinates


def test_merge_lora_writes_merged_weights_and_processor_files(tmp_path):
    assert main(["merge-lora", str(ORIGINAL_CHECKPOINT), str(ORIGINAL_LORA), str(tmp_path), "--config-overrides", str(OVERRIDES)]) == 0
    merged, base = load_file(tmp_path / "model.safetensors"), load_file(ORIGINAL_CHECKPOINT / "model.safetensors")
    key = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[f"model.language_model.{key}"], base[f"model.{key}"])
    assert (tmp_path / "chat_template.jinja").is_file()


def test_merge_lora_without_base_reads_it_from_the_adapter(tmp_path, monkeypatch):
    adapter = shutil.copytree(ORIGINAL_LORA, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(ORIGINAL_CHECKPOINT)}))
    overrides = ["--config-overrides", str(OVERRIDES)]
    assert main(["merge-lora", str(adapter), str(tmp_path / "found"), *overrides]) == 0
    assert main(["merge-lora", str(ORIGINAL_CHECKPOINT), str(ORIGINAL_LORA), str(tmp_path / "given"), *overrides]) == 0
    found, given = (load_file(tmp_path / name / "model.safetensors") for name in ("found", "given"))
    assert found.keys() == given.keys() and all(torch.equal(found[name], given[name]) for name in found)


def test_merge_lora_without_peft_is_an_error_that_names_the_extra(tmp_path, monkeypatch, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(ORIGINAL_CHECKPOINT)}))
    (adapter / "adapter_model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it raises ModuleNotFoundError
    assert main(["merge-lora", str(adapter), str(tmp_path / "merged"), "--config-overrides", str(OVERRIDES)]) == 1
    assert "needs peft: pip install 'llava-st-hf[train]'" in capsys.readouterr().err


def test_demo_example_runs_offline_and_writes_answer_video_and_image(tmp_path):
    demo = Path(__file__).parents[1] / "examples" / "demo.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(demo), "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "results on real videos are meaningless" in run.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert (
        answer.keys() == {"question", "text", "events", "notes", "media", "task", "query"}
        and answer["events"][0]["boxes"]
        and not answer["notes"]
    )
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("annotated.mp4", "demo.png", "demo.webp"))
