# SPDX-License-Identifier: Apache-2.0
"""Liger's kernels: the decoder's modules that are replaced, and errors before training. The kernels themselves need a GPU."""

import pytest
import torch
from transformers.integrations import liger
from transformers.models.qwen2 import modeling_qwen2

from llava_st_hf.training import LlavaSTTrainingConfig, prepare_model_for_training
from llava_st_hf.training.liger_kernels import apply_liger_kernels, check_liger_support, register_liger_kernels
from modeling_tests.factories import tiny_model
from modeling_tests.one_training import make_trainer
from modeling_tests.test_backbones_llava_st import pair_config


monkey_patch = pytest.importorskip("liger_kernel.transformers.monkey_patch")
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def unchanged_libraries(monkeypatch):
    """Takes back what Liger replaces in modules of transformers, and what is registered in Liger."""
    for name in ("apply_rotary_pos_emb", "Qwen2RMSNorm", "Qwen2MLP"):
        monkeypatch.setattr(modeling_qwen2, name, getattr(modeling_qwen2, name))
    monkeypatch.setattr(monkey_patch, "MODEL_TYPE_TO_APPLY_LIGER_FN", dict(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN))


def liger_modules(model) -> set[str]:
    """Names of the modules whose forward is one of Liger's."""
    return {name for name, module in model.named_modules() if "Liger" in module.forward.__qualname__}


def expected_modules(prefix: str, layers: int) -> set[str]:
    of_layers = {f"{prefix}.layers.{n}.{name}" for n in range(layers) for name in ("input_layernorm", "post_attention_layernorm", "mlp")}
    return {*of_layers, f"{prefix}.norm"}


def test_transformers_trainer_function_replaces_norms_mlps_and_rope_of_the_decoder_only():
    register_liger_kernels(CUDA, "qwen2")
    model = prepare_model_for_training(tiny_model(), ["packer", "lora"], lora_r=2)
    forward = model.get_base_model().forward.__func__
    liger.apply_liger_kernel(model, {"fused_linear_cross_entropy": False})  # as TRL sets it
    assert liger_modules(model) == expected_modules("base_model.model.model.language_model", 2)
    assert "liger" in modeling_qwen2.apply_rotary_pos_emb.__name__
    assert model.get_base_model().forward.__func__ is forward


def test_apply_liger_kernels_options_leave_modules_unchanged():
    model, rotary = tiny_model(), modeling_qwen2.apply_rotary_pos_emb
    apply_liger_kernels(model, rope=False, swiglu=False)
    names = {name.rsplit(".", 1)[-1] for name in liger_modules(model)}
    assert names == {"input_layernorm", "post_attention_layernorm", "norm"}
    assert modeling_qwen2.apply_rotary_pos_emb is rotary


@pytest.mark.parametrize("decoder", ["llama", "qwen3", "mistral", "smollm3"])
def test_apply_liger_kernels_other_decoders_have_replaced_mlps(decoder):
    model = tiny_model(pair_config(decoder, "siglip_vision_model", tie_word_embeddings=decoder == "smollm3"))
    apply_liger_kernels(model, rope=False, rms_norm=False)
    assert {name.rsplit(".", 1)[-1] for name in liger_modules(model)} == {"mlp"}


def test_apply_liger_kernels_other_activation_raises_before_any_change():
    model = tiny_model()
    model.config.text_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match=r"hidden_act='gelu'.*swiglu: false"):
        apply_liger_kernels(model)
    assert not liger_modules(model)


def test_check_liger_support_on_a_cpu_or_without_kernels_for_the_decoder_raises():
    with pytest.raises(ValueError, match="do not run on cpu"):
        check_liger_support(torch.device("cpu"), "qwen2")
    with pytest.raises(ValueError, match=r"model_type 'stablelm'; it has some for .*qwen2"):
        check_liger_support(CUDA, "stablelm")
    check_liger_support(CUDA, "qwen2")


def test_trainer_with_liger_on_a_cpu_raises_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"do not run on cpu\. Set use_liger_kernel: false"):
        make_trainer(tmp_path, max_steps=1, count=3, use_liger_kernel=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"liger_kernel_config": {"fused_linear_cross_entropy": True}}, "soft targets"),
        ({"liger_kernel_config": {"layer_norm": True}}, "has 'layer_norm'; it must have keys among rope"),
        ({"selective_checkpointing": "matmuls"}, "set liger_kernel_config: {rope: false}"),
    ],
)
def test_training_config_with_unusable_liger_options_raises(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LlavaSTTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, use_liger_kernel=True, **options)
    allowed = {"liger_kernel_config": {"rope": False}, "selective_checkpointing": "matmuls"}
    assert LlavaSTTrainingConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, use_liger_kernel=True, **allowed).use_liger_kernel
