# SPDX-License-Identifier: Apache-2.0
"""Recipes, base models of stages, and the settings that are compared when a run is resumed."""

import dataclasses
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
from transformers.trainer_utils import HubStrategy
from trl import ModelConfig, TrlParser

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.checkpoints.adapters import merge_adapter
from llava_st_hf.cli import main as llava_st
from llava_st_hf.distributed import set_fsdp_layers
from llava_st_hf.training import LlavaSTTrainingConfig, check_resume_compatibility, prepare_base_model, prepare_model_for_training
from llava_st_hf.training.run_metadata import HARMLESS_ARGUMENTS
from modeling_tests.factories import tiny_config, tiny_model
from modeling_tests.processors import model_for, tiny_processor


REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted(path for path in (REPOSITORY / "training/recipes").glob("*.yaml") if "grpo" not in path.name)  # see test_training_grpo
ALL_PARTS = ["packer", "input_embeddings", "coordinate_embeddings", "lora"]


@pytest.fixture(scope="module")
def three_stages(tmp_path_factory) -> tuple[Path, str]:
    """Trains all three stages by the recipes, as a user would; returns the folder and the printed output."""
    folder = tmp_path_factory.mktemp("stages")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "llava_st_hf.examples.three_stages", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return folder, finished.stdout


def log_of(run: Path) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


def test_three_stages_train_in_sequence_and_ground_a_video(three_stages):
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


def test_base_model_of_each_stage_equals_the_result_of_the_stage_before(three_stages):
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
    assert torch.equal(base3.lm_head.weight[:rows], base2.lm_head.weight[:rows])  # only coordinate embeddings were trained


def test_adapter_of_a_stage_merges_equally_with_peft_and_the_command(three_stages, tmp_path, capsys):
    folder, _ = three_stages
    adapter = folder / "stage3"
    base = AutoModelForImageTextToText.from_pretrained(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    by_peft = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    assert llava_st(["merge-lora", str(adapter / "base"), str(adapter), str(tmp_path / "merged")]) == 0
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    for name, weight in by_peft.state_dict().items():
        found = merged.state_dict()[name]
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            found = found[: len(weight)]  # the command adds rows to the vocabulary
        torch.testing.assert_close(found, weight)
    answer = pipeline("video-grounding", model=str(tmp_path / "merged"))(str(folder / "data/0.mp4"), task="tvg", text="a square")
    assert answer["text"]


def test_prepare_base_model_nothing_to_add_returns_the_given_folder(tmp_path):
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert prepare_base_model(str(tmp_path / "model"), tmp_path / "run", ALL_PARTS, torch.float32) == str(tmp_path / "model")
    assert not (tmp_path / "run").exists()


def test_prepare_base_model_adapter_of_unknown_base_raises(tmp_path):
    model = prepare_model_for_training(model_for(tiny_processor()), ["lora"], lora_r=2)
    model.peft_config["default"].base_model_name_or_path = None
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not name the base model"):
        prepare_base_model(str(tmp_path), tmp_path / "run", ["lora"], torch.float32)
    assert not (tmp_path / "run").exists()


def test_prepare_base_model_adds_coordinate_tokens_once_and_reuses_the_folder(tmp_path):
    processor = tiny_processor(num_temporal_bins=0, num_spatial_bins=0)
    model_for(processor, use_coordinate_tokens=False).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    base = prepare_base_model(str(tmp_path / "model"), tmp_path / "run", ALL_PARTS, torch.float32)
    before = {path.name: path.stat().st_mtime_ns for path in Path(base).iterdir()}
    assert prepare_base_model(str(tmp_path / "model"), tmp_path / "run", ALL_PARTS, torch.float32) == base
    assert {path.name: path.stat().st_mtime_ns for path in Path(base).iterdir()} == before
    assert LlavaSTProcessor.from_pretrained(base).num_temporal_bins == 100
    assert prepare_base_model(str(tmp_path / "model"), tmp_path / "other", ["packer"], torch.float32) == str(tmp_path / "model")


def test_prepare_base_model_folder_without_model_raises_with_its_name(tmp_path):
    write_checkpoint(tmp_path / "run", 4)
    with pytest.raises(FileNotFoundError, match=r"neither a model nor an adapter.*has not ended.*checkpoint-4"):
        prepare_base_model(str(tmp_path / "run"), tmp_path / "out", ["packer"], torch.float32)
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        prepare_base_model(str(tmp_path / "gone"), tmp_path / "out", ["packer"], torch.float32)


def write_checkpoint(run: Path, step: int) -> None:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def write_mixture(folder: Path) -> Path:
    """Writes a mixture of a file in jsonl format and one with a folder of boxes."""
    (folder / "boxes/1").mkdir(parents=True, exist_ok=True)
    (folder / "boxes/1/2.json").write_text("[]")
    for name in ("own.json", "vidstg.json"):
        (folder / name).write_text("[]")
    entries = [
        {"json_path": "own.json", "format": "jsonl"},
        {"json_path": "vidstg.json", "format": "vidstg", "data_folder": ".", "boxes_folder": "boxes"},
    ]
    (folder / "mixture.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    return folder / "mixture.yaml"


def check(tmp_path, model: str = "model", num_samples: int = 8, lora_r: int = 4, **options) -> None:
    options = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "bf16": False, "seed": 1, "learning_rate": 1e-3, **options}
    check_resume_compatibility(LlavaSTTrainingConfig(**options), model, tmp_path / "mixture.yaml", num_samples, lora_r=lora_r)


@pytest.fixture
def begun_run(tmp_path) -> Path:
    """Returns the parent folder of a run with a checkpoint."""
    write_mixture(tmp_path)
    check(tmp_path, seed=2)
    check(tmp_path)  # without checkpoints the settings may change
    write_checkpoint(tmp_path / "run", 2)
    return tmp_path


CHANGES = [
    {"seed": 3}, {"model": "other"}, {"num_samples": 7}, {"lora_r": 8}, {"trainable_modules": ["packer"]},
    {"learning_rates": {"lora": 0.1}}, {"learning_rate": 2e-3}, {"video_backend": "decord"}, {"allow_truncated": True},
    {"lr_scheduler_type": "cosine"}, {"warmup_steps": 5}, {"lr_scheduler_kwargs": {"num_cycles": 2}}, {"adam_beta1": 0.8},
    {"adam_beta2": 0.98}, {"adam_epsilon": 1e-6}, {"optim": "sgd"}, {"dataloader_drop_last": True}, {"weight_decay": 0.1},
    {"max_grad_norm": 0.5}, {"gradient_accumulation_steps": 2}, {"muon": True}, {"ignore_data_skip": True}, {"loss_on": "original"},
    {"neftune_noise_alpha": 5.0}, {"average_tokens_across_devices": False},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_resume_with_another_setting_raises_with_its_name(begun_run, change):
    [name] = change
    options = {"optim": "adamw_torch"} if name == "muon" else {}
    with pytest.raises(ValueError, match=rf"has checkpoints of another run: .*{name} was .* and is"):
        check(begun_run, **change, **options)


def test_resume_with_harmless_changes_is_accepted(begun_run):
    options = {"max_steps": 9, "logging_steps": 7, "save_steps": 3, "per_device_eval_batch_size": 3, "dataloader_num_workers": 2}
    check(begun_run, **options, gradient_checkpointing=False, report_to="tensorboard", max_errors=3)


def test_harmless_arguments_are_names_of_existing_arguments():
    """A misspelled name would be compared in spite of the list."""
    names = {field.name for field in dataclasses.fields(LlavaSTTrainingConfig)} | {field.name for field in dataclasses.fields(ModelConfig)}
    assert names >= HARMLESS_ARGUMENTS - {"local_rank"}


@pytest.mark.parametrize("file", ["own.json", "vidstg.json", "boxes/1/2.json"])
def test_resume_with_an_edited_annotation_file_raises_with_its_name(begun_run, file):
    (begun_run / file).write_text("[1]")  # the content differs
    with pytest.raises(ValueError, match=f"the annotation file {file} has changed"):
        check(begun_run)


def test_resume_with_another_mixture_raises(begun_run):
    mixture = begun_run / "mixture.yaml"
    (begun_run / "more.json").write_text("[]")
    mixture.write_text(mixture.read_text().replace("own.json", "more.json"))
    with pytest.raises(ValueError, match=r"the mixture file has changed.*own.json is not in .*more.json was not in"):
        check(begun_run)


def test_resume_with_a_relative_path_of_the_same_model_is_accepted(begun_run, monkeypatch):
    (begun_run / "start").mkdir()
    (begun_run / "run/checkpoint-2/trainer_state.json").unlink()
    check(begun_run, model=str(begun_run / "start"))
    write_checkpoint(begun_run / "run", 3)
    monkeypatch.chdir(begun_run)
    check(begun_run, model="start")
    check(begun_run, model="./run/../start/")
    with pytest.raises(ValueError, match="model was"):
        check(begun_run, model="run")


def test_resume_with_a_base_model_only_compares_the_settings(tmp_path):
    write_mixture(tmp_path)
    check(tmp_path)
    (tmp_path / "run/base").mkdir()
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        check(tmp_path, seed=2)


@pytest.mark.parametrize("content, message", [(None, "no run.json"), ("{", "is damaged"), ('{"train": []}', "another version")])
def test_resume_without_valid_metadata_raises(begun_run, content, message):
    path = begun_run / "run/run.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=message):
        check(begun_run)


def test_resume_with_an_output_folder_that_is_a_file_raises(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NotADirectoryError, match=r"output_dir=.* is a file"):
        check(tmp_path)


def stage_1_folder(folder: Path) -> str:
    processor = tiny_processor(num_temporal_bins=0, num_spatial_bins=0)
    model_for(processor, use_coordinate_tokens=False).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_prepare_base_model_same_seed_adds_the_same_coordinate_embeddings(tmp_path):
    start = stage_1_folder(tmp_path / "start")
    weights = []
    for number, seed in enumerate((5, 5, 6)):
        torch.rand(number)  # the global random state has no effect
        state = torch.get_rng_state()
        base = prepare_base_model(start, tmp_path / f"run{number}", ALL_PARTS, torch.float32, seed)
        assert torch.equal(torch.get_rng_state(), state)
        weights.append(Path(base, "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_prepare_base_model_full_disk_names_the_folder_and_can_be_repeated(tmp_path, monkeypatch):
    start = stage_1_folder(tmp_path / "start")
    with monkeypatch.context() as patch:

        def full_disk(self, folder, *args, **kwargs):
            raise OSError(28, "No space left on device")

        patch.setattr(LlavaSTProcessor, "save_pretrained", full_disk)
        with pytest.raises(OSError, match=rf"The model could not be saved to {tmp_path}/run/base .*No space left"):
            prepare_base_model(start, tmp_path / "run", ALL_PARTS, torch.float32)
    base = prepare_base_model(start, tmp_path / "run", ALL_PARTS, torch.float32)
    assert LlavaSTProcessor.from_pretrained(base).num_temporal_bins == 100


def parse(*arguments: str):
    from llava_st_hf.launch.sft import DataArguments

    parser = TrlParser((DataArguments, LlavaSTTrainingConfig, ModelConfig))
    return parser.parse_args_and_config(["--output_dir", "run", "--bf16", "false", "--use_cpu", "true", *arguments])


OLD_NAMES = {
    "train": ("[packer, coordinate_rows]", ["packer", "coordinate_rows"], "trainable_modules", ["packer", "coordinate_embeddings"]),
    "label_scheme": ("released", ["released"], "loss_on", "original"),
    "questions_per_medium": ("3", ["3"], "max_conversations_per_sequence", 3),
}


@pytest.mark.filterwarnings("ignore:.* is now :FutureWarning")  # warnings about old values, in addition to those about names
@pytest.mark.parametrize("old", OLD_NAMES)
@pytest.mark.parametrize("by_recipe", [False, True])
def test_old_names_of_arguments_are_accepted_with_a_warning(tmp_path, old, by_recipe):
    yaml_value, words, new, value = OLD_NAMES[old]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mixture: mixture.yaml\n" + (f"{old}: {yaml_value}\n" if by_recipe else ""))
    with pytest.warns(FutureWarning, match=f"{old} is now {new}"):
        data_args, training_args, _ = parse("--config", str(recipe), *([] if by_recipe else [f"--{old}", *words]))
    owner = data_args if old == "questions_per_medium" else training_args
    assert getattr(owner, new) == value and getattr(owner, old) is None


def test_old_and_new_name_with_different_values_raises():
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=r"train=\['lora'\] and trainable_modules=\['packer'\] differ"):
        parse("--mixture", "mixture.yaml", "--train", "lora", "--trainable_modules", "packer")


def test_old_values_are_accepted_with_a_warning():
    options = {"output_dir": "run", "use_cpu": True, "bf16": False}
    with pytest.warns(FutureWarning, match='"released" is now loss_on="original"'):
        assert LlavaSTTrainingConfig(**options, loss_on="released").loss_on == "original"
    with pytest.warns(FutureWarning, match='"coordinate_rows" is now "coordinate_embeddings"'):
        args = LlavaSTTrainingConfig(**options, learning_rates={"coordinate_rows": 1e-3})
    assert args.learning_rates == {"coordinate_embeddings": 1e-3}


def test_checkpoint_to_resume_is_the_given_or_the_last_one(tmp_path):
    from llava_st_hf.launch.sft import checkpoint_to_resume

    def resume(**options):
        return checkpoint_to_resume(LlavaSTTrainingConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, **options))

    assert resume() is None
    with pytest.raises(ValueError, match=r"has no complete checkpoint. Remove the argument"):
        resume(resume_from_checkpoint="true")
    write_checkpoint(tmp_path / "run", 4)
    write_checkpoint(tmp_path / "run", 8)
    (tmp_path / "run/checkpoint-29").mkdir()
    last = str(tmp_path / "run/checkpoint-8")
    assert resume() == resume(resume_from_checkpoint="true") == resume(resume_from_checkpoint=True) == last
    assert resume(resume_from_checkpoint="run/checkpoint-4") == "run/checkpoint-4"
    with pytest.raises(ValueError, match="resume_from_checkpoint=false is not supported"):
        resume(resume_from_checkpoint=False)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_arguments_without_old_names(recipe, tmp_path):
    from llava_st_hf.launch.sft import DataArguments

    parser = TrlParser((DataArguments, LlavaSTTrainingConfig, ModelConfig))
    here = ["--output_dir", str(tmp_path), "--bf16", "false", "--tf32", "false", "--use_cpu", "true"]  # the machine may have no GPU
    data_args, training_args, model_args = parser.parse_args_and_config(["--config", str(recipe), *here])
    said = yaml.safe_load(recipe.read_text())
    for name, value in said.items():
        [owner] = [args for args in (data_args, training_args, model_args) if name in vars(args)]
        if name not in ("output_dir", "bf16", "tf32", "use_cpu", "report_to"):
            assert getattr(owner, name) == value, name
    if recipe.name.startswith("stage") and "own_backbones" not in recipe.name:  # settings of the paper: LLaVA-ST, section 4.1
        assert training_args.num_train_epochs == 1 and training_args.lr_scheduler_type == "cosine"
        assert training_args.warmup_steps == 0.03 and training_args.weight_decay == 0 and training_args.max_length == 32768
        first = "stage1" in recipe.name
        assert training_args.learning_rate == (1e-4 if first else 2e-5)
        assert training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps == (8 if first else 4)
        assert training_args.trainable_modules == (ALL_PARTS[:2] if first else ALL_PARTS)
        if not first:
            assert (model_args.lora_r, model_args.lora_alpha, model_args.lora_dropout) == (128, 256, 0.05)
            assert training_args.learning_rates == {"lora": 2e-4}


def test_accelerate_configurations_are_loaded_by_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((REPOSITORY / "training/accelerate").glob("*.yaml"))
    assert {path.stem for path in files} == {"single_gpu", "ddp", "zero2", "zero3", "fsdp2"}
    for path in files:
        assert load_config_from_file(str(path)).mixed_precision == "bf16"


@pytest.fixture
def fsdp_environment(monkeypatch):
    """Environment of a process that accelerate starts with the configuration fsdp2."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = ["--config_file", str(REPOSITORY / "training/accelerate/fsdp2.yaml"), "--num_processes", "2", "program.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "")  # restored after the test
    monkeypatch.delenv("FSDP_TRANSFORMER_CLS_TO_WRAP")
    return monkeypatch


@pytest.mark.parametrize("parts", [["packer"], ["lora"]], ids=["full", "adapter"])
@pytest.mark.parametrize("decoder", ["qwen2", "qwen3"])
def test_set_fsdp_layers_shards_the_layers_of_any_decoder(fsdp_environment, decoder, parts):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from peft.utils.other import fsdp_auto_wrap_policy

    model = prepare_model_for_training(tiny_model(tiny_config(text_config={"model_type": decoder})), parts)
    set_fsdp_layers(model)
    shards = fsdp2_prepare_auto_wrap_policy(FullyShardedDataParallelPlugin(), model)
    found = [module for module in model.modules() if shards(module)]
    assert len(found) == 2 and all(one is other for one, other in zip(found, model.get_decoder().layers, strict=True))
    if parts == ["lora"]:
        fsdp_auto_wrap_policy(model)  # raises an error for a class that the model lacks


def test_set_fsdp_layers_of_another_class_raises_and_without_fsdp_does_nothing(fsdp_environment):
    fsdp_environment.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    with pytest.raises(ValueError, match=r"names LlamaDecoderLayer, which .* does not contain\. .* are Qwen2DecoderLayer"):
        set_fsdp_layers(tiny_model())
    fsdp_environment.setenv("ACCELERATE_USE_FSDP", "false")
    set_fsdp_layers(tiny_model())


def test_sft_upload_of_an_adapter_of_a_local_base_raises_before_training(tmp_path):
    from llava_st_hf.launch.sft import check_upload, refuse_unused_arguments

    args = LlavaSTTrainingConfig(output_dir=str(tmp_path), push_to_hub=True, use_cpu=True, bf16=False)
    model = tiny_model()
    adapter = prepare_model_for_training(tiny_model(), ["lora"])
    with pytest.raises(ValueError, match="is no hub id"):
        check_upload(args, adapter, str(tmp_path))
    check_upload(args, adapter, "owner/base")
    check_upload(args, model, str(tmp_path))
    args.hub_strategy = HubStrategy.EVERY_SAVE  # the default of TRL's arguments
    with pytest.raises(ValueError, match="hub_strategy='every_save' must be"):
        refuse_unused_arguments(args, ModelConfig())
