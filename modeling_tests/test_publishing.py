# SPDX-License-Identifier: Apache-2.0
"""Publishing on a stand-in of the hub: files and cards that arrive, and models that load from there without this package."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import pipeline

from llava_st_cli.main import main as llava_st
from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.checkpoints.atomic import save_model_and_processor
from llava_st_hf.checkpoints.publishing import read_results, stage_folder
from llava_st_hf.model.model_card_llava_st import model_card
from modeling_tests.hub_server import Hub, card_problems, client_environment, serve_hub
from modeling_tests.processors import model_for, tiny_processor
from modeling_tests.test_remote_code import answers, run_without_package, write_clip


ROOT = Path(__file__).resolve().parents[1]
SCORES = {"default": {"m_tiou": 0.41, "m_tiou_low": 0.39, "m_tiou_high": 0.43, "notes": ["no METEOR"]}, "original": {"mtiou": 0.4}}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """`(hub, folder)` after `publish_all`; the hub still runs."""
    folder = tmp_path_factory.mktemp("publishing")
    write_scores(folder)
    with serve_hub() as hub:
        environment = {**os.environ, **client_environment(hub, folder / "home"), "HF_TOKEN": "hf_test"}
        command = [sys.executable, "-m", "modeling_tests.publish_all", str(folder)]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-4000:]
        yield hub, folder


def write_scores(folder: Path) -> Path:
    (folder / "scores.json").write_text(json.dumps(SCORES))
    (folder / "settings.json").write_text(json.dumps({"benchmark": "st_align_stvg", "model": "mine"}))
    return folder / "scores.json"


def card_of(hub: Hub, name: str) -> ModelCard:
    return ModelCard(hub.repositories[f"someone/{name}"].files["README.md"].decode())


NAMES = ("pipeline", "model", "processor", "image", "video", "pushed", "converted", "trained")


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_publish_uploads_a_valid_complete_card(published, name):
    hub, folder = published
    card, repository = card_of(hub, name), hub.repositories[f"someone/{name}"]
    assert card_problems(str(card)) == []
    assert card.data.pipeline_tag == "video-text-to-text" and "video-grounding" in card.data.tags
    assert card.data.library_name == ("peft" if name == "trained" else "transformers")
    for heading in ("Use", "Tasks", "Training", "Limits", "Citation"):
        assert f"\n## {heading}\n" in card.text
    (picture,) = re.findall(r"!\[[^]]*\]\((\S+)\)", card.text)
    assert repository.files[picture].startswith(b"\x89PNG")
    assert f'"someone/{name}"' in card.text and f"# someone/{name}\n" in card.text
    texts = "".join(content.decode() for path, content in repository.files.items() if not path.endswith((".safetensors", ".png")))
    assert not [path for path in (str(folder), DEMO_MODEL_PATH, str(ROOT), str(Path.home())) if path in texts]


def test_lines_of_use_in_the_cards_of_models_and_adapters_run(published, tmp_path):
    """Those of the adapter with its base model, which random weights give answers without events."""
    hub, _ = published
    write_clip(tmp_path)
    blocks = {name: re.findall(r"```python\n(.*?)```", card_of(hub, name).text, re.DOTALL) for name in ("converted", "trained")}
    program = "\n".join([f"import os; os.chdir({str(tmp_path)!r})", *(block for [block] in blocks.values())])
    environment = {**os.environ, **client_environment(hub, tmp_path / "home")}
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    printed = [ast.literal_eval(line) for line in run.stdout.splitlines() if line.startswith("{'text'")]
    assert len(printed) == 2 and printed[0]["events"]
    assert "pip install llava-st-hf peft" in card_of(hub, "trained").text


def test_published_models_load_without_the_package_with_equal_answers(published, tmp_path):
    hub, _ = published
    video = write_clip(tmp_path)
    expected = json.loads(json.dumps(answers(pipeline("video-grounding"), video)))
    found = run_without_package("someone/pipeline", tmp_path, **client_environment(hub, tmp_path / "home"))
    assert found["answers"] == expected
    for name in ("model", "pushed", "converted"):
        assert {path for path in hub.repositories[f"someone/{name}"].files if path.endswith(".py")} == {
            path for path in hub.repositories["someone/pipeline"].files if path.endswith(".py")
        }


def test_published_weights_are_safetensors_in_parts_sent_through_lfs(published):
    hub, _ = published
    for name, repository in hub.repositories.items():
        assert not [path for path in repository.files if path.endswith((".bin", ".pt", ".pth"))], name
    parts = [path for path in hub.repositories["someone/pipeline"].files if path.endswith(".safetensors")]
    assert len(parts) > 1 and set(parts) <= hub.repositories["someone/pipeline"].lfs


def test_trainer_uploads_neither_checkpoints_nor_bases_nor_files_of_the_run(published):
    hub, _ = published
    files = hub.repositories["someone/trained"].files
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json", "processing_llava_st.py"} <= files.keys()
    assert not [name for name in files if "/" in name or name.startswith(".") or name in ("run.json", "training_args.bin")]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
    assert "### Recipe" in card_of(hub, "trained").text


def test_push_writes_results_licence_and_origin_into_the_card(published):
    hub, _ = published
    data = card_of(hub, "pushed").data
    assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "owner/base", ["owner/data"])
    assert {(result.dataset_name, result.metric_name, result.metric_value) for result in data.eval_results} == {
        ("st_align_stvg", "m_tiou", 0.41),
        ("st_align_stvg", "mtiou (original protocol)", 0.4),
    }
    assert hub.repositories["someone/model"].commits == ["Upload LlavaSTForConditionalGeneration", "Upload processor"]


def test_push_keeps_the_card_of_the_repository(published):
    hub, _ = published
    card = card_of(hub, "config")
    assert "Written on the hub." in card.text and (card.data.license, card.data.base_model) == ("mit", "owner/base")
    assert "model.safetensors" in hub.repositories["someone/config"].files


def stage(tmp_path: Path, **options) -> Path:
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_folder(tmp_path / "model", staged, "someone/model", **options)
    return staged


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def name_code(folder: Path, reference: str) -> None:
    """Names the code of an Auto class that this package does not have."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoModelForCausalLM"] = reference
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def saved(tmp_path) -> Path:
    processor = tiny_processor()
    save_model_and_processor(model_for(processor), processor, tmp_path / "model")
    return tmp_path / "model"


def test_stage_folder_keeps_an_own_card_and_adds_metadata(tmp_path, saved):
    (saved / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n\nMy words.\n")
    (saved / "training_args.bin").write_bytes(b"pickle")
    staged = stage(tmp_path, scores=[write_scores(tmp_path)], base_model="owner/base")
    card = ModelCard.load(staged / "README.md")
    assert "My words." in card.text and card.data.license == "mit" and card.data.tags == ["mine"]
    assert card.data.base_model == "owner/base" and len(card.data.eval_results) == 2 and card_problems(str(card)) == []
    assert "My words." in (saved / "README.md").read_text() and "owner/base" not in (saved / "README.md").read_text()
    assert not (staged / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda folder: (folder / "pytorch_model.bin").touch(), {}, "pytorch_model.bin is a pickle"),
        (lambda folder: (folder / "model.safetensors").unlink(), {}, "has no model\\*.safetensors"),
        (lambda folder: truncate(folder / "model.safetensors"), {}, "model.safetensors is damaged"),
        (lambda folder: name_code(folder, "owner/other--modeling.Model"), {}, "config.json names owner/other--modeling.Model as the code"),
        (lambda folder: name_code(folder, "absent.Model"), {}, "config.json names absent.Model as the code"),
        (lambda folder: (folder / "processor_config.json").unlink(), {}, "has no processor_config.json"),
        (lambda folder: (folder / "config.json").unlink(), {}, "contains neither a model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llava_qwen"}'), {}, "'llava_qwen'. Convert it with"),
        (lambda folder: (folder / "README.md").write_text(f"---\n{{}}\n---\nsee {folder}"), {}, "README.md contains the local path"),
        (lambda folder: None, {"base_model": "/some/where"}, "base_model must be a hub id such as owner/name, got '/some/where'"),
        (lambda folder: None, {"datasets": ["a b"]}, "dataset of a card must be a hub id such as owner/name, got 'a b'"),
        (lambda folder: None, {"license": "Apache 2"}, "license must be an identifier of the hub"),
    ],
)
def test_stage_folder_with_what_must_not_be_published_raises(tmp_path, saved, change, options, message):
    change(saved)
    with pytest.raises((ValueError, OSError), match=message):
        stage(tmp_path, **options)


def test_stage_folder_without_one_of_its_shards_raises(tmp_path, saved):
    model_for(tiny_processor()).save_pretrained(saved, max_shard_size="100KB")
    staged = stage(tmp_path)
    assert {path.name for path in staged.glob("*.safetensors*")} == {path.name for path in saved.glob("*.safetensors*")}
    staged.rename(tmp_path / "first")
    (saved / "model-00002-of-00005.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00005.safetensors, which model.safetensors.index.json names"):
        stage(tmp_path)


def test_stage_folder_of_an_adapter_needs_the_hub_id_of_its_base(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path), "r": 8}))
    with pytest.raises(ValueError, match="is no hub id: give the hub id of its base model"):
        stage(tmp_path)
    (tmp_path / "staged").rename(tmp_path / "first")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not name its base model"):
        stage(tmp_path)
    (tmp_path / "staged").rename(tmp_path / "second")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path), "r": 8}))
    staged = stage(tmp_path, base_model="owner/base")
    assert json.loads((staged / "adapter_config.json").read_text()) == {"base_model_name_or_path": "owner/base", "r": 8}
    assert ModelCard.load(staged / "README.md").data.base_model == "owner/base"
    assert str(tmp_path) in (folder / "adapter_config.json").read_text()


@pytest.mark.parametrize(
    ("scores", "message"),
    [("[", "is not valid JSON"), ("[1]", "must hold a JSON object"), ('{"default": 1}', "does not hold scores by protocol"),
     ('{"default": {"miou": "high"}}', "default.miou must be a number, got 'high'"), ("{}", "holds no scores")],
)  # fmt: skip
def test_read_results_of_a_damaged_file_names_it(tmp_path, scores, message):
    write_scores(tmp_path).write_text(scores)
    with pytest.raises(ValueError, match=f"scores.json.*{message}"):
        read_results(tmp_path / "scores.json")


def test_push_without_a_folder_is_an_error(tmp_path, capsys):
    assert llava_st(["push", str(tmp_path / "absent"), "someone/model"]) == 1
    assert "contains neither a model" in capsys.readouterr().err


def test_card_of_a_local_base_names_no_path(tmp_path):
    card = str(model_card("mine", base_model=str(tmp_path)))
    assert str(tmp_path) not in card and "has not stated a licence" in card and card_problems(card) == []
