# SPDX-License-Identifier: Apache-2.0
"""`llava-st train` and `llava-st recipes`: commands that are started, recipes that are found and copied, and a run without an override."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llava_st_hf
from llava_st_cli.arguments import parse
from llava_st_cli.main import main as llava_st
from llava_st_cli.training import FOLDERS, training_command
from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from modeling_tests.media import moving_frames, write_video
from modeling_tests.test_remote_code import check_code_is_complete


REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Working folder with an empty file for each mixture that a test names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "mixture.yaml").touch()
    return tmp_path


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    return training_command(parse(["train", *arguments, "--mixture", "mixture.yaml"]))


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_train_runs_one_process_of_the_recipe_with_its_precision(folder):
    launch, _ = command("finetune_lora", "--output_dir", "runs/try")
    assert launch[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert Path(option(launch, "--config_file")).name == "single_gpu.yaml" and option(launch, "--mixed_precision") == "bf16"
    program = launch[launch.index("--mixed_precision") + 2 :]
    recipe = str(FOLDERS["recipes"] / "finetune_lora.yaml")
    assert program == ["-m", "llava_st_hf.launch.sft", "--config", recipe, "--output_dir", "runs/try", "--mixture", "mixture.yaml"]
    for arguments, precision in ((["--bf16", "false"], "no"), (["--bf16=false", "--fp16"], "fp16"), (["--fp16", "true"], "fp16")):
        assert option(command("finetune_lora", *arguments)[0], "--mixed_precision") == precision
    assert "--cpu" not in launch and "--cpu" in command("finetune_lora", "--use_cpu")[0]


def test_train_passes_machines_and_processes_to_accelerate(folder):
    launch, _ = command("stage1_content_alignment", "--accelerate", "zero2", "--num_processes", "16", "--num-machines", "2")
    assert Path(option(launch, "--config_file")).name == "zero2.yaml"
    assert option(launch, "--num_processes") == "16" and option(launch, "--num_machines") == "2"
    launch, _ = command("finetune_lora", "--num_processes", "4", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    assert Path(option(launch, "--config_file")).name == "ddp.yaml"
    assert option(launch, "--machine_rank") == "1" and option(launch, "--main_process_ip") == "10.0.0.1"
    (folder / "mine.yaml").write_text("distributed_type: NO\n")
    assert option(command("finetune_lora", "--accelerate", "mine.yaml")[0], "--config_file") == "mine.yaml"


def test_train_starts_several_cpu_processes_without_accelerate(folder):
    launch, environment = command("finetune_bundled", "--num_processes", "2")
    assert launch[1:6] == ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    assert int(environment["OMP_NUM_THREADS"]) >= 1
    two = ["--num_processes", "4", "--num_machines", "2", "--machine_rank", "1"]
    launch, _ = command("finetune_bundled", *two, "--main_process_ip", "10.0.0.1")
    assert (option(launch, "--nproc_per_node"), option(launch, "--nnodes"), option(launch, "--node_rank")) == ("2", "2", "1")
    with pytest.raises(ValueError, match="--main_process_ip"):
        command("finetune_bundled", *two)
    with pytest.raises(ValueError, match="--num_processes 3 must be a multiple of --num_machines 2"):
        command("finetune_bundled", "--num_processes", "3", "--num_machines", "2")
    with pytest.raises(ValueError, match="--accelerate zero2 has no effect"):
        command("finetune_bundled", "--num_processes", "2", "--accelerate", "zero2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune"], "finetune is neither a file nor a recipe of this package: finetune_bundled, "),
        (
            ["finetune_lora", "--accelerate", "zero9", "--mixture", "mixture.yaml"],
            "zero9 is neither a file nor a configuration of this package: ddp, ",
        ),
        (["finetune_lora", "--mixture", "absent.yaml"], "mixture=absent.yaml is not a file. Set it in the recipe, or by --mixture FILE."),
        (["list.yaml", "--mixture", "mixture.yaml"], "The recipe list.yaml must hold `name: value` lines"),
        (["finetune_lora", "--num_processes", "0"], "--num-processes must be at least 1, got 0."),
    ],
)
def test_train_with_a_wrong_argument_fails_before_it_starts(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(os, "execve", lambda *args: pytest.fail("must not start"))
    (folder / "list.yaml").write_text("- 1\n")
    assert llava_st(["train", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_other_commands_refuse_arguments_that_are_not_theirs(capsys):
    with pytest.raises(SystemExit, match="2"):
        llava_st(["recipes", "--learning_rate", "1"])
    assert "No such option: --learning_rate" in capsys.readouterr().err


def test_recipes_lists_and_copies_without_overwriting(folder, capsys):
    assert llava_st(["recipes"]) == 0
    listed = capsys.readouterr().out
    names = [path.stem for part in FOLDERS.values() for path in part.glob("*.yaml")]
    assert len(names) >= 20 and all(f"  {name} " in listed for name in names)
    assert llava_st(["recipes", "finetune_lora", "zero2.yaml", "--output", "mine"]) == 0
    assert {path.name for path in (folder / "mine").iterdir()} == {"finetune_lora.yaml", "zero2.yaml"}
    assert (folder / "mine/zero2.yaml").read_bytes() == (FOLDERS["accelerate configurations"] / "zero2.yaml").read_bytes()
    assert llava_st(["recipes", "--output", "mine"]) == 1
    assert "mine already has finetune_lora.yaml, zero2.yaml, which would be overwritten." in capsys.readouterr().err
    assert llava_st(["recipes", "finetune"]) == 1
    assert "There is no recipe finetune." in capsys.readouterr().err


def test_repository_folder_training_has_the_recipes_of_the_package():
    for part in ("recipes", "accelerate"):
        assert (REPOSITORY / "training" / part).resolve() == Path(llava_st_hf.__file__).parent / "launch" / part


def test_finetune_bundled_trains_on_a_jsonl_file_without_an_override(folder):
    (folder / "my_data").mkdir()
    write_video(folder / "my_data/clip.mp4", moving_frames(20, 48, 64), fps=10)
    rows = [{"task": "tvg", "video": "clip.mp4", "text": f"event {n}", "span": [0.2 * n, 0.5 + 0.2 * n]} for n in range(2)]
    (folder / "my_data/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = [sys.executable, "-m", "llava_st_cli.main", "train", "finetune_bundled"]
    paths = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_DATASETS_CACHE": str(folder / "cache")}
    finished = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    output = folder / "runs/finetune-bundled"
    losses = [entry["loss"] for entry in json.loads((output / "trainer_state.json").read_text())["log_history"] if "loss" in entry]
    assert len(losses) == 2 and losses[-1] < losses[0]
    check_code_is_complete(output)
    LlavaSTProcessor.from_pretrained(output)
    trained = LlavaSTForConditionalGeneration.from_pretrained(output)
    assert trained.dtype == torch.float32 and not (output / "adapter_config.json").exists()
