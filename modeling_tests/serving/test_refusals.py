# SPDX-License-Identifier: Apache-2.0
"""Models, options and checkpoints that the plug-in refuses, at the start of the engine."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from vllm.engine.arg_utils import EngineArgs

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.integrations.vllm.model import check_options, check_weight_names

from .engine import EngineError, run_engine


def check(**options) -> None:
    check_options(EngineArgs(model=DEMO_MODEL_PATH, **options).create_engine_config())


def test_check_options_plain_checkpoint_is_accepted():
    check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_lora": True}, "llava-st merge-lora ADAPTER OUTPUT"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size=2"),
        ({"media_io_kwargs": {"video": {"num_frames": 32}}}, "--mm-processor-kwargs"),
    ],
)
def test_check_options_unsupported_option_raises_value_error(options, message):
    with pytest.raises(ValueError, match=message):
        check(**options)


@pytest.mark.parametrize("architecture", ["LlavaQwenForCausalLM", "LlavaSTQwenForCausalLM"])
def test_engine_original_layout_names_the_converting_command(architecture, tmp_path):
    folder = tmp_path / "released"
    shutil.copytree(DEMO_MODEL_PATH, folder)
    config = {
        "model_type": "llava_qwen",
        "architectures": [architecture],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 956,
        "mm_resampler_type": "fast_slow_resampler",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "num_spatial_tokens": 100,
        "num_temporal_tokens": 100,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"llava-st convert {folder} OUTPUT"):
        check_options(EngineArgs(model=str(folder)).create_engine_config())


NAMES = {"lm_head.weight", "model.a.q_proj.weight", "model.a.q_proj.bias", "model.norm.weight"}


@pytest.mark.parametrize(
    ("seen", "tied", "quantized", "message"),
    [
        (NAMES, False, False, None),
        (NAMES - {"lm_head.weight"}, True, False, None),
        ({*NAMES - {"model.a.q_proj.weight"}, "model.a.q_proj.weight.absmax", "model.a.q_proj.qweight"}, False, True, None),
        (NAMES - {"lm_head.weight"}, False, False, "misses weights: lm_head.weight"),
        (NAMES - {"model.a.q_proj.bias"}, False, False, "misses weights: model.a.q_proj.bias"),
        ({*NAMES, "model.b.weight"}, False, False, "has unexpected weights: model.b.weight"),
        (NAMES - {"model.norm.weight"}, False, True, "misses weights: model.norm"),
        ({*NAMES, "model.b.qweight"}, False, True, "has unexpected weights: model.b.qweight"),
    ],
)
def test_check_weight_names_differing_names_raise_value_error(seen, tied, quantized, message):
    if message is None:
        check_weight_names("model", seen, NAMES, tied, quantized)
    else:
        with pytest.raises(ValueError, match=message):
            check_weight_names("model", seen, NAMES, tied, quantized)


def test_engine_checkpoint_without_a_weight_does_not_start(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, folder, ignore=shutil.ignore_patterns("fingerprint.json"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.0.self_attn.k_proj.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"misses weights: model.language_model.layers.0.self_attn.k_proj.bias"):
        run_engine(tmp_path, folder, [])


def test_engine_other_sampled_frames_than_in_the_fingerprint_do_not_start(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, folder)
    config = json.loads((folder / "processor_config.json").read_text())
    config["video_processor"]["num_frames"] -= 1
    (folder / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=r"features of the video of fingerprint.json"):
        run_engine(tmp_path, folder, [])
