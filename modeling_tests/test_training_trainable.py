# SPDX-License-Identifier: Apache-2.0
"""Freezing and training of modules; saving adapters, loading them with PEFT and merging them."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from llava_st_hf.checkpoints.adapters import base_of, merge_adapter
from llava_st_hf.model.presence_llava_st import set_presence_calibration
from llava_st_hf.model.scores_llava_st import set_calibration
from llava_st_hf.training import TRAINABLE_MODULES, prepare_model_for_training
from llava_st_hf.training.trainable import part_of
from modeling_tests.factories import mixed_batch, tiny_config, tiny_model


def trained_parts(model) -> set[str]:
    return {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model, rate: float = 0.5) -> None:
    """Runs one step of gradient descent on all trainable parameters."""
    batch = mixed_batch(model.config)
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= rate * parameter.grad
    model.eval()


@pytest.mark.parametrize(
    "parts",
    [
        ["packer", "input_embeddings"],
        ["packer"],
        ["vision_tower", "projector", "packer", "input_embeddings", "output_embeddings", "language_model"],
        ["packer", "input_embeddings", "coordinate_embeddings", "lora"],
        ["packer", "coordinate_embeddings", "lora"],
        ["lora"],
        ["coordinate_embeddings"],
        ["projector", "vision_tower", "lora"],
    ],
    ids="+".join,
)
def test_prepare_model_for_training_trains_only_the_named_modules(parts):
    model = prepare_model_for_training(tiny_model(), parts, lora_r=2, lora_alpha=4, lora_dropout=0.0)
    expected = set(parts)
    assert trained_parts(model) == expected
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    step(model)
    changed = {part_of(name) for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == expected


def test_part_of_assigns_every_parameter_to_a_module():
    parts = {part_of(name) for name, _ in tiny_model().named_parameters()}
    assert parts == set(TRAINABLE_MODULES) - {"lora", "coordinate_embeddings"}
    with pytest.raises(ValueError, match=r"stranger\.weight is not a parameter"):
        part_of("stranger.weight")


def test_prepare_model_for_training_coordinate_embeddings_changes_no_other_embedding():
    model = prepare_model_for_training(tiny_model(), ["coordinate_embeddings"])
    base = {name: getattr(tiny_model(), name)().weight for name in ("get_input_embeddings", "get_output_embeddings")}
    step(model)
    merged = model.merge_and_unload()
    first, end = merged.config.coordinates.start_token_id, merged.config.coordinates.end_token_id
    for name, weight in base.items():
        moved = (getattr(merged, name)().weight != weight).any(-1)
        assert not moved[:first].any() and not moved[end:].any() and moved[first:end].all()


def test_prepare_model_for_training_lora_adapts_only_decoder_layers():
    model = prepare_model_for_training(tiny_model(), ["lora"], lora_r=2)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    layers = model.config.text_config.num_hidden_layers
    assert len(adapted) == 7 * layers and all(".language_model.layers." in name for name in adapted)


@pytest.mark.parametrize("tie", [False, True], ids=["two matrices", "one matrix"])
@pytest.mark.parametrize(
    "parts", [["packer", "input_embeddings", "coordinate_embeddings", "lora"], ["packer", "coordinate_embeddings", "lora"]]
)
def test_adapter_saved_loaded_with_peft_or_merged_gives_the_trained_logits(tmp_path, parts, tie):
    make = lambda: tiny_model(tiny_config(tie_word_embeddings=tie))  # noqa: E731
    make().save_pretrained(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    model = prepare_model_for_training(base, parts, lora_r=2, lora_alpha=4, lora_dropout=0.0)
    step(model, 0.05)
    step(model, 0.05)  # lora_A has a gradient from the second step on
    model.save_pretrained(tmp_path / "adapter")
    batch = mixed_batch(model.config)
    with torch.no_grad():
        trained = model(**batch).logits
        fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "base").eval()
        assert (fresh(**batch).logits - trained).abs().max() > 1e-2
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(**batch).logits, trained, atol=1e-5, rtol=1e-5)
        merged = merge_adapter(tmp_path / "adapter", tmp_path / "base").eval()
        torch.testing.assert_close(merged(**batch).logits, trained, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(**batch).logits, trained, atol=1e-4, rtol=1e-4)


def test_merge_adapter_of_another_model_is_an_error(tmp_path):
    model = prepare_model_for_training(tiny_model(), ["packer", "coordinate_embeddings", "lora"], lora_r=2)
    model.save_pretrained(tmp_path / "adapter")
    tiny_model(tiny_config(packer_hidden_size=8)).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="is not for"):
        merge_adapter(tmp_path / "adapter", tmp_path / "narrow")
    tiny_model(tiny_config(text_config={"num_hidden_layers": 1})).save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match=r"contains .*which is not in"):
        merge_adapter(tmp_path / "adapter", tmp_path / "short")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match="is damaged"):
        merge_adapter(tmp_path / "adapter", tmp_path / "short")
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        merge_adapter(tmp_path / "narrow")


def test_base_of_reads_the_base_from_the_adapter_or_raises_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path / "start")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "start")
    prepare_model_for_training(model, ["lora"], lora_r=2).save_pretrained(tmp_path / "adapter")
    assert base_of(tmp_path / "adapter") == str(tmp_path / "start")
    file = tmp_path / "adapter/adapter_config.json"
    config = json.loads(file.read_text())
    for base, error, message in (
        (None, ValueError, "does not name the base model"),
        (str(tmp_path / "gone"), FileNotFoundError, "gone, which is not a folder here"),
    ):
        file.write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(error, match=message):
            base_of(tmp_path / "adapter")
    tiny_model().save_pretrained(tmp_path / "adapter/base")
    assert base_of(tmp_path / "adapter") == str(tmp_path / "adapter/base")


def test_prepare_model_for_training_disabled_fast_stream_keeps_the_fast_packer_frozen():
    for parts in (["packer"], ["packer", "lora"]):
        model = prepare_model_for_training(tiny_model(tiny_config(disable_fast_stream=True)), parts, lora_r=2)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and not any(".fast." in name for name in trained)


@pytest.mark.parametrize(
    "parts, message",
    [
        (["packer", "vision"], "'vision'"),
        ([], "contains no module"),
        (["lora", "language_model"], 'both "lora" and "language_model"'),
        (["coordinate_embeddings", "language_model"], "replace the latter by input_embeddings"),
    ],
)
def test_prepare_model_for_training_with_invalid_modules_is_an_error(parts, message):
    with pytest.raises(ValueError, match=message):
        prepare_model_for_training(tiny_model(), parts)


def test_prepare_model_for_training_coordinate_embeddings_of_a_stage_1_model_is_an_error():
    with pytest.raises(ValueError, match=r"no coordinate tokens .*prepare_base_model"):
        prepare_model_for_training(tiny_model(tiny_config(use_coordinate_tokens=False)), ["coordinate_embeddings"])


def test_calibrations_are_removed_from_trained_and_merged_models(tmp_path):
    """They were fitted to the weights before training."""
    names = ("score_calibration", "presence_calibration")
    base = tiny_model()
    set_calibration(base.generation_config, {"span": (1.5, 0.25)})
    set_presence_calibration(base.generation_config, {"threshold": 0.75})
    base.save_pretrained(tmp_path / "base")
    adapted = prepare_model_for_training(base, ["lora"], lora_r=2, lora_alpha=4, lora_dropout=0.0)
    assert not any(hasattr(adapted.generation_config, name) for name in names)
    adapted.save_pretrained(tmp_path / "adapter")
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "base").generation_config
    assert saved.score_calibration == {"span": [1.5, 0.25]} and saved.presence_calibration["threshold"] == 0.75
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "base").generation_config
    assert not any(hasattr(merged, name) for name in names)
