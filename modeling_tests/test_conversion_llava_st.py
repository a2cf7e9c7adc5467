# SPDX-License-Identifier: Apache-2.0
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_st_hf import LlavaSTForConditionalGeneration
from llava_st_hf.conversion_llava_st import add_coordinate_rows, merge_lora
from modeling_tests.factories import tiny_config, tiny_model
from modeling_tests.reference import ORIGINAL_CHECKPOINT, REFERENCE, analytic_pixels, config_overrides, expected, requires_reference


ORIGINAL_LORA = REFERENCE / "tiny" / "original_lora"


def merged_logits(model) -> torch.Tensor:
    """Logits of the reference's case inference.0 at its text positions."""
    input_ids = expected()["inference.0.input_ids"].long()[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=input_ids, pixel_values_videos=analytic_pixels(1, 100)[None]).logits[0]
    return logits[expected()["inference.0.text_positions"].long()]


def copy_folder(source, target):
    shutil.copytree(source, target)
    for path in [target, *target.iterdir()]:
        os.chmod(path, 0o755)
    return target


@pytest.fixture
def stage_folder(tmp_path):
    return copy_folder(ORIGINAL_LORA, tmp_path / "stage")


@requires_reference
def test_a_stage_folder_merges_into_its_released_base():
    model = merge_lora(ORIGINAL_CHECKPOINT, ORIGINAL_LORA, **config_overrides())
    torch.testing.assert_close(merged_logits(model), expected()["lora.0.text_logits"], atol=1e-4, rtol=0)


@requires_reference
def test_a_stage_folder_merges_into_a_base_in_our_layout(tmp_path):
    LlavaSTForConditionalGeneration.from_pretrained(ORIGINAL_CHECKPOINT, **config_overrides()).save_pretrained(tmp_path)
    torch.testing.assert_close(merged_logits(merge_lora(tmp_path, ORIGINAL_LORA)), expected()["lora.0.text_logits"], atol=1e-4, rtol=0)


@requires_reference
def test_a_stage_1_base_without_coordinates_grows_them_and_saves(tmp_path):
    base = copy_folder(ORIGINAL_CHECKPOINT, tmp_path / "base")
    weights = {key: tensor for key, tensor in load_file(base / "model.safetensors").items() if "put_embeddings" not in key}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    del config["num_temporal_tokens"], config["num_spatial_tokens"]
    (base / "config.json").write_text(json.dumps(config))
    assert not LlavaSTForConditionalGeneration.from_pretrained(base, **config_overrides()).config.use_lape

    merge_lora(base, ORIGINAL_LORA, **config_overrides()).save_pretrained(tmp_path / "merged")
    model = LlavaSTForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged_logits(model), expected()["lora.0.text_logits"], atol=1e-4, rtol=0)


@requires_reference
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"])
def test_a_folder_that_lacks_a_file_is_named_with_it(stage_folder, name):
    (stage_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder)


@requires_reference
@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"rank_pattern": {"q_proj": 8}}])
def test_an_adapter_of_another_kind_is_refused_by_its_setting(stage_folder, setting):
    path = stage_folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(ValueError, match=next(iter(setting))):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder)


class _Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


@requires_reference
def test_a_pickle_with_code_in_it_is_not_run(stage_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"base_model.model.lm_head.weight": _Trap()}, stage_folder / "non_lora_trainables.bin")
    with pytest.raises(pickle.UnpicklingError):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder)
    assert not (tmp_path / "sprung").exists()


@requires_reference
@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("base_model.model.model.unheard_of.weight", torch.zeros(2), "model.unheard_of.weight, which is no tensor"),
        ("base_model.model.model.layers.7.input_layernorm.weight", torch.zeros(64), "model.layers.7"),
        ("base_model.model.model.norm.weight", torch.zeros(63), r"shape \(63,\)"),
        ("base_model.model.model.embed_tokens.weight", torch.zeros(580, 64), r"shape \(580, 64\)"),
        ("model.norm.weight", torch.zeros(64), "begins with 'base_model.model.'"),
    ],
)
def test_a_tensor_without_a_place_in_the_base_is_named(stage_folder, key, tensor, message):
    torch.save({key: tensor}, stage_folder / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=message):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder, **config_overrides())


@requires_reference
def test_half_of_a_lora_pair_is_refused(stage_folder):
    weights = load_file(stage_folder / "adapter_model.safetensors")
    dropped = next(key for key in weights if "lora_B" in key)
    save_file({key: tensor for key, tensor in weights.items() if key != dropped}, stage_folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="only lora_A of"):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder, **config_overrides())


def test_added_coordinate_rows_are_last_fresh_and_change_nothing_else():
    model = tiny_model(use_lape=False)
    rows = model.config.text_config.vocab_size
    before, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
    add_coordinate_rows(model, num_temporal_bins=6, num_spatial_bins=5)
    assert model.config.use_lape and model.config.coordinate_start_token_id == rows
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == rows + 16
    torch.testing.assert_close(model.get_input_embeddings().weight[:rows], before)
    torch.testing.assert_close(model.lm_head.weight[:rows], head)
    assert 0.7 < model.get_input_embeddings().weight[rows:].std() < 1.3  # N(0, 1)
    assert model.lm_head.weight[rows:].abs().max() <= 32**-0.5  # U(±1/√d)


def test_a_model_with_coordinates_is_not_given_more():
    with pytest.raises(ValueError, match="already"):
        add_coordinate_rows(tiny_model(tiny_config()), 6, 5)
