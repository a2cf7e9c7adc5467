# SPDX-License-Identifier: Apache-2.0
"""`llava-st doctor`, and the memory that it computes."""

import json
from argparse import Namespace

import psutil
import pytest
import torch
from transformers import DynamicCache

from llava_st_cli import doctor
from llava_st_cli.main import main
from llava_st_hf import DEMO_MODEL_PATH, LlavaSTConfig
from llava_st_hf.commands.memory import inference_memory
from modeling_tests.factories import tiny_config, tiny_model


def test_doctor_reports_every_part_as_text_and_json(capsys):
    assert main(["doctor", DEMO_MODEL_PATH, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"] and {finding["part"] for finding in report["findings"]} == {
        "System", "Packages", "Extras", "Devices", "Video", "Attention", "Memory",
    }  # fmt: skip
    for name in ("Python", "torch", "transformers", "libx264", "cpu", "sdpa", "main memory", "disk", DEMO_MODEL_PATH):
        assert findings[name]["status"] == "ok", findings[name]
    assert findings["torch"]["detail"] == torch.__version__.split("+")[0]
    assert main(["doctor", DEMO_MODEL_PATH]) == 0
    text = capsys.readouterr().out
    assert "Devices:\n" in text and text.endswith("Everything that is required works.\n")


def test_doctor_too_old_package_missing_extra_and_large_model(monkeypatch, capsys):
    version = doctor.version

    def installed(name: str) -> str:
        if name == "tensorboard":
            raise doctor.PackageNotFoundError(name)
        return "1.0" if name == "pillow" else version(name)

    monkeypatch.setattr(doctor, "version", installed)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Namespace(available=2**20, total=2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", DEMO_MODEL_PATH]) == 1
    text = capsys.readouterr().out
    assert "error    pillow                       1.0 is not >=" in text
    assert "missing  [train]" in text and "tensorboard is not installed (needs >=2.19): pip install 'llava-st-hf[train]'" in text
    assert "does not fit into 0.0 GiB of free main memory" in text
    assert text.splitlines()[-1] == f"Does not work: pillow, {DEMO_MODEL_PATH}."


def test_doctor_package_that_cannot_be_imported_is_a_finding(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    findings = list(doctor.examine(DEMO_MODEL_PATH))
    (video,) = [finding for finding in findings if finding.part == "Video"]
    assert video.status == "error" and "av" in video.detail and findings[-1].part == "Memory"


def test_doctor_wrong_product_of_a_device_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *args: torch.zeros(64, 64, dtype=torch.float64))
    (finding,) = doctor._products("cpu", "a broken device")
    assert finding[1] == "error" and "float32 differs by 1e+00 from float64" in finding[2]


def test_inference_memory_counts_weights_and_cache_of_the_model():
    config, model = tiny_config(), tiny_model()
    need = inference_memory(config, torch.bfloat16, num_frames=10)
    assert need["parameters"] == sum(weight.numel() for weight in model.parameters()) and need["weights"] == 2 * need["parameters"]
    cache = DynamicCache(config=config.text_config)
    with torch.no_grad():
        model.model.language_model(input_ids=torch.zeros(1, 7, dtype=torch.long), **{cache_argument(): cache})
    per_token = 2 * sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) // 7
    frames = 10 * config.fast_grid_size**2 + 10 // config.packer_temporal_stride * config.packed_grid_size**2
    assert need["kv_cache"] == per_token * (frames + 200 + 2048)
    assert need["total"] == need["weights"] + need["activations"] + need["kv_cache"]


def cache_argument() -> str:
    from llava_st_hf.model.cache_name_llava_st import CACHE_NAME

    return CACHE_NAME


def test_inference_memory_of_the_published_model():
    need = inference_memory(LlavaSTConfig(), torch.bfloat16)
    assert need["parameters"] == 8_095_706_912
    # 26 MB for each of 100 frames: see `vision_chunk_size`.
    assert need["activations"] == pytest.approx(100 * 26e6, rel=0.01)
    assert inference_memory(LlavaSTConfig(vision_chunk_size=10), torch.bfloat16)["activations"] < need["activations"]
