# SPDX-License-Identifier: Apache-2.0
"""Recipes, and the way from stage to stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForImageTextToText, pipeline
from trl import ModelConfig, TrlParser

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.checkpoints.adapters import merge_adapter
from llava_st_hf.cli import main as llava_st
from llava_st_hf.training import LlavaSTTrainingConfig, check_resume_compatibility, prepare_base_model, prepare_model_for_training
from modeling_tests.processors import model_for, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPOSITORY / "training/recipes").glob("*.yaml"))
ALL_PARTS = ["packer", "input_embeddings", "coordinate_embeddings", "lora"]


@pytest.fixture(scope="module")
def three_stages(tmp_path_factory) -> tuple[Path, str]:
    """The folder of all three stages, trained by the recipes as one would by hand, and what was printed."""
    folder = tmp_path_factory.mktemp("stages")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, str(REPOSITORY / "examples/three_stages.py"), str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return folder, finished.stdout


def log_of(run: Path) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def test_three_stages_train_one_after_the_other_and_ground_a_video(three_stages):
    folder, output = three_stages
    for stage, tasks in ((1, {"caption"}), (2, {"tvg", "tr", "rec", "reg", "dgc"}), (3, {"stvg", "svg", "elc"})):
        log = log_of(folder / f"stage{stage}")
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert len(losses) == 8 and all(0 < loss < 20 for loss in losses)
        assert {f"loss_{task}" for task in tasks} <= {name for entry in log for name in entry}
        card = (folder / f"stage{stage}/README.md").read_text()
        assert "| made |" in card and "## Recipe" in card and str(folder) not in card
    losses = [entry["loss"] for entry in log_of(folder / "stage1") if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    answer = json.loads(output.strip().splitlines()[-1])
    assert {"text", "events", "notes"} <= answer.keys()


def test_each_stage_begins_where_the_one_before_it_ended(three_stages):
    folder, _ = three_stages
    load = LlavaSTForConditionalGeneration.from_pretrained
    stage1, base2 = load(folder / "stage1"), load(folder / "stage2/base")
    assert not stage1.config.use_coordinate_tokens and base2.config.use_coordinate_tokens
    grown = base2.state_dict()
    for name, weight in stage1.state_dict().items():
        torch.testing.assert_close(grown[name][: len(weight)] if weight.ndim else grown[name], weight, atol=0, rtol=0)
    base3, merged = load(folder / "stage3/base"), merge_adapter(folder / "stage2")
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(base3.state_dict()[name], weight, atol=0, rtol=0)
    changed = {name for name, weight in base3.state_dict().items() if not torch.equal(weight, grown[name])}
    assert any("packer" in name for name in changed) and {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= changed
    assert not any("vision_tower" in name or "projector" in name for name in changed)
    rows = base2.config.coordinates.start_token_id
    assert torch.equal(base3.lm_head.weight[:rows], base2.lm_head.weight[:rows])  # of the head, only coordinates were trained


def test_what_a_stage_leaves_loads_as_peft_says_and_by_command(three_stages, tmp_path, capsys):
    folder, _ = three_stages
    adapter = folder / "stage3"
    base = AutoModelForImageTextToText.from_pretrained(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    by_peft = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    assert llava_st(["merge-lora", str(adapter / "base"), str(adapter), str(tmp_path / "merged")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    for name, weight in by_peft.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], weight)
    answer = pipeline("video-grounding", model=str(tmp_path / "merged"))(str(folder / "data/0.mp4"), task="tvg", text="a square")
    assert answer["text"]


def test_the_starting_folder_is_the_model_itself_where_nothing_is_to_be_added(tmp_path):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert prepare_base_model(str(tmp_path / "model"), tmp_path / "run", ALL_PARTS, torch.float32) == str(tmp_path / "model")
    assert not (tmp_path / "run").exists()


def test_a_released_adapter_of_unknown_base_is_refused(tmp_path):
    model = prepare_model_for_training(model_for(tiny_processor()), ["lora"], lora_r=2)
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not name the model"):
        prepare_base_model(str(tmp_path), tmp_path / "run", ["lora"], torch.float32)
    assert not (tmp_path / "run").exists()


def test_coordinates_are_added_once_and_found_again(tmp_path):
    processor = tiny_processor(num_temporal_bins=0, num_spatial_bins=0)
    model_for(processor, use_coordinate_tokens=False).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    base = prepare_base_model(str(tmp_path / "model"), tmp_path / "run", ALL_PARTS, torch.float32)
    before = {path.name: path.stat().st_mtime_ns for path in Path(base).iterdir()}
    assert prepare_base_model(str(tmp_path / "model"), tmp_path / "run", ALL_PARTS, torch.float32) == base
    assert {path.name: path.stat().st_mtime_ns for path in Path(base).iterdir()} == before
    assert LlavaSTProcessor.from_pretrained(base).num_temporal_bins == 100
    assert prepare_base_model(str(tmp_path / "model"), tmp_path / "other", ["packer"], torch.float32) == str(tmp_path / "model")


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    (tmp_path / "run/checkpoint-4").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"neither a model nor an adapter.*has not ended.*checkpoint-4"):
        prepare_base_model(str(tmp_path / "run"), tmp_path / "out", ["packer"], torch.float32)
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        prepare_base_model(str(tmp_path / "gone"), tmp_path / "out", ["packer"], torch.float32)


def record(tmp_path, model: str = "model", num_samples: int = 8, lora_r: int = 4, **options) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.touch()
    args = LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, **options)
    check_resume_compatibility(args, model, mixture, num_samples, lora_r=lora_r)


@pytest.mark.parametrize("begun", ["checkpoint-2", "base"])
def test_no_other_run_goes_on_from_a_folders_checkpoints(tmp_path, begun):
    record(tmp_path, seed=1)
    record(tmp_path, seed=2)  # nothing was done yet
    (tmp_path / "run" / begun).mkdir()
    record(tmp_path, seed=2, max_steps=9, logging_steps=7)
    changes = [{"seed": 3}, {"model": "other"}, {"num_samples": 7}, {"lora_r": 8}, {"trainable_modules": ["packer"]}, {"learning_rates": {"lora": 0.1}}]
    changes += [{"video_backend": "decord"}, {"allow_truncated": True}]
    for change in changes:
        with pytest.raises(ValueError, match=f"holds another run: {next(iter(change))} was .* and is"):
            record(tmp_path, **{"seed": 2, **change})
    (tmp_path / "mixture.yaml").write_text("changed")
    with pytest.raises(ValueError, match="mixture was"):
        check_resume_compatibility(
            LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, seed=2),
            "model", tmp_path / "mixture.yaml", 8, lora_r=4,
        )  # fmt: skip
    (tmp_path / "run/run.json").unlink()
    with pytest.raises(ValueError, match="of another program"):
        record(tmp_path, seed=2)


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NotADirectoryError, match=r"output_dir=.* is a file"):
        record(tmp_path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_what_the_arguments_take(recipe, tmp_path):
    sys.path.insert(0, str(REPOSITORY / "training"))
    from sft import DataArguments

    parser = TrlParser((DataArguments, LlavaSTTrainingConfig, ModelConfig))
    here = ["--output_dir", str(tmp_path), "--bf16", "false", "--tf32", "false", "--use_cpu", "true"]  # this machine may have no GPU
    data_args, training_args, model_args = parser.parse_args_and_config(["--config", str(recipe), *here])
    said = yaml.safe_load(recipe.read_text())
    for name, value in said.items():
        [owner] = [args for args in (data_args, training_args, model_args) if name in vars(args)]
        if name not in ("output_dir", "bf16", "tf32", "use_cpu", "report_to"):
            assert getattr(owner, name) == value, name
    if recipe.name.startswith("stage"):  # the paper's own: LLaVA-ST, section 4.1
        assert training_args.num_train_epochs == 1 and training_args.lr_scheduler_type == "cosine"
        assert training_args.warmup_steps == 0.03 and training_args.weight_decay == 0 and training_args.max_length == 32768
        first = "stage1" in recipe.name
        assert training_args.learning_rate == (1e-4 if first else 2e-5)
        assert training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps == (8 if first else 4)
        assert training_args.trainable_modules == (ALL_PARTS[:2] if first else ALL_PARTS)
        if not first:
            assert (model_args.lora_r, model_args.lora_alpha, model_args.lora_dropout) == (128, 256, 0.05)
            assert training_args.learning_rates == {"lora": 2e-4}


def test_accelerate_configurations_are_read_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((REPOSITORY / "training/accelerate").glob("*.yaml"))
    assert {path.stem for path in files} == {"single_gpu", "ddp", "zero2", "zero3", "fsdp2"}
    for path in files:
        assert load_config_from_file(str(path)).mixed_precision == "bf16"
