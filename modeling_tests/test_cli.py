# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from llava_st_hf import LlavaSTProcessor
from llava_st_hf.cli import main
from modeling_tests.factories import tiny_config
from modeling_tests.media import write_cut, write_video
from modeling_tests.processors import model_for, tiny_processor
from modeling_tests.reference import ORIGINAL_CHECKPOINT, REFERENCE, requires_reference


OVERRIDES = REFERENCE / "tiny" / "config_overrides.json"


@pytest.fixture
def clip(tmp_path) -> str:
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", frames, fps=10)
    return str(tmp_path / "clip.mp4")


def test_ground_prints_one_json_answer(clip, tmp_path, capsys):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    question = ["--task", "svg", "--text", "a dog runs", "--span", "0.2", "0.8", "--max-new-tokens", "4"]
    assert main(["ground", clip, "--model", str(tmp_path / "model"), *question]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"text", "events", "notes"}


def test_a_problem_is_one_line_on_stderr_and_status_1(tmp_path, capsys):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert main(["ground", "nowhere.mp4", "--model", str(tmp_path), "--text", "hm"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("llava-st: ") and "nowhere.mp4" in captured.err


def test_ground_looks_at_a_part_in_seconds(clip, tmp_path, capsys):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    question = ["ground", clip, "--model", str(tmp_path), "--text", "When?", "--max-new-tokens", "2"]
    assert main([*question, "--start", "0.2", "--end", "0.8"]) == 0
    capsys.readouterr()
    assert main([*question, "--start", "0.2", "--end", "9"]) == 1
    assert "lies beyond the end" in capsys.readouterr().err


def test_ground_reads_files_as_it_is_asked_to(clip, tmp_path, capsys):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked = ["--model", str(tmp_path), "--text", "When?", "--max-new-tokens", "2"]
    assert main(["ground", clip, *asked, "--video-backend", "decord"]) == 0
    capsys.readouterr()
    assert main(["ground", clip, *asked, "--video-backend", "opencv"]) == 1
    assert "video_backend must be one of 'pyav', 'decord'" in capsys.readouterr().err
    cut = str(write_cut(tmp_path / "cut.mkv"))
    assert main(["ground", cut, *asked]) == 1
    assert "cut.mkv is cut short" in (message := capsys.readouterr().err) and "--allow-truncated" in message
    assert main(["ground", cut, *asked, "--allow-truncated"]) == 0
    assert "cut short" in json.loads(capsys.readouterr().out)["notes"][0]


def test_ground_takes_the_frame_rate_of_a_folder_of_frames(clip, tmp_path, capsys):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "frames").mkdir()
    for number in range(4):
        Image.new("RGB", (64, 48), (number * 60, 0, 0)).save(tmp_path / "frames" / f"{number}.png")
    question = ["--model", str(tmp_path / "model"), "--task", "tr", "--span", "0", "1.5", "--max-new-tokens", "2"]
    assert main(["ground", str(tmp_path / "frames"), *question, "--fps", "2"]) == 0
    assert main(["ground", str(tmp_path / "frames"), *question, "--fps", "4"]) == 1
    assert "is outside the clip, which lasts from 0 to 1 seconds" in capsys.readouterr().err
    assert main(["ground", str(tmp_path / "frames"), *question]) == 1
    assert "the frame rate of the video is unknown" in capsys.readouterr().err
    assert main(["ground", clip, *question, "--fps", "2"]) == 1
    assert "a video file has its own" in capsys.readouterr().err


def refusal(capsys, *argv) -> str:
    assert main(list(map(str, argv))) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("llava-st: ")]
    assert captured.out == "" and len(lines) == 1 and captured.err.splitlines()[-1] == lines[0]
    return lines[0]


def test_no_tokens_are_refused(capsys):
    assert "--max-new-tokens must be at least 1, got 0" in refusal(
        capsys, "ground", "a.mp4", "--model", "m", "--text", "x", "--max-new-tokens", 0
    )


def test_an_adapter_is_no_model(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    for argv in (["ground", "a.mp4", "--model", tmp_path], ["convert", tmp_path, "out"], ["merge-lora", tmp_path, tmp_path, "out"]):
        assert "is an adapter and no whole model" in refusal(capsys, *argv)


def test_an_output_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "out").touch()
    for argv in (["convert", "nowhere", tmp_path / "out"], ["merge-lora", "nowhere", "nowhere", tmp_path / "out"]):
        assert "out is a file" in refusal(capsys, *argv)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", "must hold a JSON object"),
        ("{", "is no JSON"),
        ('{"packer_width": 3}', "sets packer_width, which"),
        ('{"text_config": {"layers": 3}}', "sets text_config.layers, which"),
        ('{"packer_spatial_stride": "three"}', "does not fit .*packer_spatial_stride"),
        ('{"packer_spatial_stride": 7}', "packer_spatial_stride=7 does not divide"),
    ],
)
def test_impossible_overrides_are_refused_before_weights_are_read(tmp_path, capsys, content, message):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "overrides.json").write_text(content)
    line = refusal(capsys, "convert", tmp_path, tmp_path / "out", "--config-overrides", tmp_path / "overrides.json")
    assert "overrides.json" in line and re.search(message, line)


@requires_reference
def test_convert_writes_our_layout_that_auto_classes_load(tmp_path):
    assert main(["convert", str(ORIGINAL_CHECKPOINT), str(tmp_path), "--config-overrides", str(OVERRIDES)]) == 0
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava_st"
    assert "model.packer.spatial.q_proj.weight" in load_file(tmp_path / "model.safetensors")
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).config.disable_fast_stream
    assert LlavaSTProcessor.from_pretrained(tmp_path).ignore_prompt_x_coordinates


@requires_reference
def test_merge_lora_writes_a_folder_that_answers(tmp_path):
    lora = REFERENCE / "tiny" / "original_lora"
    assert main(["merge-lora", str(ORIGINAL_CHECKPOINT), str(lora), str(tmp_path), "--config-overrides", str(OVERRIDES)]) == 0
    merged, base = load_file(tmp_path / "model.safetensors"), load_file(ORIGINAL_CHECKPOINT / "model.safetensors")
    key = "layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[f"model.language_model.{key}"], base[f"model.{key}"])
    assert (tmp_path / "chat_template.jinja").is_file()


def test_the_demo_runs_offline_and_leaves_an_answer_a_video_and_a_picture(tmp_path):
    demo = Path(__file__).parents[1] / "examples" / "demo.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(demo), "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "nothing of the real world" in run.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer.keys() == {"question", "text", "events", "notes"} and answer["events"][0]["boxes"] and not answer["notes"]
    assert (tmp_path / "annotated.mp4").stat().st_size > 1000 and (tmp_path / "demo.png").stat().st_size > 1000
