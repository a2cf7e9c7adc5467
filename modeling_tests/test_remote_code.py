# SPDX-License-Identifier: Apache-2.0
"""Saved models carry their code: they load where this package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_relative_imports

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTProcessor, VideoGroundingPipeline
from llava_st_hf.checkpoints.atomic import save_model_and_processor
from llava_st_hf.model.configuration_llava_st import AUTO_MAP, CUSTOM_PIPELINES
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.scenes import make_scene, scene_seed
from modeling_tests.factories import tiny_config
from modeling_tests.processors import model_for, tiny_processor
from modeling_tests.without_package import AUTO_CLASSES, answers


ROOT = Path(__file__).resolve().parents[1]


def class_files(folder: Path) -> set[str]:
    """Names of the files that `auto_map` and `custom_pipelines` in a folder's config.json refer to."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    references = [*config["auto_map"].values(), *(task["impl"] for task in config["custom_pipelines"].values())]
    return {f"{reference.split('.')[0]}.py" for reference in references}


def check_code_is_complete(folder: Path) -> None:
    """Asserts that a folder has the files of all classes, and of all their imports."""
    code = {path.name for path in folder.glob("*.py")}
    assert class_files(folder) <= code
    for name in code:
        assert {f"{module}.py" for module in get_relative_imports(folder / name)} <= code, name


def run_without_package(model: str, folder: Path, **environment) -> dict:
    """Results of `without_package` for a model and the video `clip.mp4` of a folder."""
    command = [sys.executable, "-m", "modeling_tests.without_package", model, str(folder / "clip.mp4"), str(folder / "results.json")]
    caches = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HOME": str(folder / "home"), "HF_HUB_CACHE": str(folder / "home/hub")}
    environment = {**os.environ, **caches, **environment}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def write_clip(folder: Path) -> str:
    path = str(folder / "clip.mp4")
    write_video(make_scene(scene_seed("test", 3), is_video=True), path)
    return path


def test_saved_pipeline_gives_equal_answers_in_an_interpreter_without_the_package(tmp_path):
    grounder = pipeline("video-grounding")
    video = write_clip(tmp_path)
    grounder.save_pretrained(tmp_path / "model")
    found = run_without_package(str(tmp_path / "model"), tmp_path)
    assert found["answers"] == json.loads(json.dumps(answers(grounder, video)))
    assert found["answers"][0]["events"] and found["pipeline"] == "VideoGroundingPipeline"
    assert found["classes"] == {name: AUTO_MAP[name].split(".")[1] for name in AUTO_CLASSES}
    # Without the package and without trust there is an error, and never a class that only resembles ours.
    assert set(found["untrusted"]) == {"AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"}
    assert all("trust_remote_code=True" in message for message in found["untrusted"].values())
    saved, again = tmp_path / "model", tmp_path / "saved-again"
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {path.name: path.read_bytes() for path in saved.iterdir()}


def test_saved_parts_have_the_files_of_all_classes_that_they_name(tmp_path):
    processor = tiny_processor()
    model = model_for(processor)
    model.save_pretrained(tmp_path / "model")
    check_code_is_complete(tmp_path / "model")
    save_model_and_processor(model, processor, tmp_path / "both")
    check_code_is_complete(tmp_path / "both")
    processor.save_pretrained(tmp_path / "processor")
    named = json.loads((tmp_path / "processor/processor_config.json").read_text(encoding="utf-8"))
    for part in (named, named["image_processor"], named["video_processor"]):
        for auto_class, reference in part["auto_map"].items():
            assert reference == AUTO_MAP[auto_class]
            assert (tmp_path / "processor" / f"{reference.split('.')[0]}.py").is_file()


@pytest.mark.parametrize("trust", [None, False, True])
def test_installed_package_wins_over_the_code_of_a_checkpoint(tmp_path, trust):
    processor = tiny_processor()
    save_model_and_processor(model_for(processor), processor, tmp_path)
    for path in tmp_path.glob("*.py"):
        path.write_text("raise RuntimeError('executed')\n", encoding="utf-8")
    grounder = pipeline("video-grounding", model=str(tmp_path), trust_remote_code=trust)
    assert type(grounder) is VideoGroundingPipeline and type(grounder.processor) is LlavaSTProcessor
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)) is LlavaSTConfig
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path, trust_remote_code=trust)) is LlavaSTForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(tmp_path, trust_remote_code=trust)) is LlavaSTProcessor


def test_config_names_the_code_and_keeps_entries_of_its_own(tmp_path):
    config = tiny_config(auto_map={"AutoModel": "mine.Model"})
    assert config.auto_map == {**AUTO_MAP, "AutoModel": "mine.Model"} and tiny_config().auto_map == AUTO_MAP
    assert config.custom_pipelines == {}  # the registry of transformers has the pipeline
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["auto_map"]["AutoModel"] == "mine.Model" and saved["custom_pipelines"] == CUSTOM_PIPELINES
    assert LlavaSTConfig(**config.to_dict()).auto_map == LlavaSTConfig.from_pretrained(tmp_path).auto_map == config.auto_map
