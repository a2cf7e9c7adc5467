# SPDX-License-Identifier: Apache-2.0
"""Other text decoders than Qwen2 and other vision encoders than SigLIP: features, loss, gradients, generation, saved models."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText

from llava_st_hf.model.backbones_llava_st import VISION_ENCODERS, num_prefix_tokens
from llava_st_hf.training.trainable import prepare_model_for_training
from modeling_tests.factories import (
    IMAGE_SIZE,
    PATCH_SIZE,
    enable_checkpointing,
    mixed_batch,
    random_images,
    single_prompts,
    tiny_config,
    tiny_model,
)


NEW = 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
GRID = IMAGE_SIZE // PATCH_SIZE
DECODERS = {
    "qwen2": {},
    "qwen3": {"head_dim": 16},  # not hidden_size / num_attention_heads, as in Qwen3-0.6B
    "llama": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "mistral": {"sliding_window": None},
}
ENCODERS = {
    "siglip_vision_model": {},
    "siglip2_vision_model": {"num_patches": GRID**2},
    "clip_vision_model": {},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"num_register_tokens": 3, "mlp_ratio": 2},
    "dinov3_vit": {"num_register_tokens": 3},
    "vit": {},
    "ijepa": {},
}
assert ENCODERS.keys() == VISION_ENCODERS.keys()
PAIRS = [("qwen2", encoder) for encoder in ENCODERS] + [(decoder, "siglip_vision_model") for decoder in DECODERS if decoder != "qwen2"]
PAIRS += [("qwen3", "dinov3_vit"), ("smollm3", "dinov2")]


def pair_config(decoder: str, encoder: str, **overrides):
    return tiny_config(
        text_config={"model_type": decoder, **DECODERS[decoder]}, vision_config={"model_type": encoder, **ENCODERS[encoder]}, **overrides
    )


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def model(request):
    return tiny_model(pair_config(*request.param, tie_word_embeddings=request.param[0] == "smollm3"))


@pytest.fixture(scope="module")
def greedy(model):
    return model.generate(**mixed_batch(model.config), **GREEDY)


def test_model_has_the_types_of_its_configuration_and_loads_again(model, tmp_path):
    text, vision = model.config.text_config, model.config.vision_config
    assert type(model.model.language_model) is type(AutoModel.from_config(text))
    assert type(model.model.vision_tower) is type(AutoModel.from_config(vision))
    model.save_pretrained(tmp_path)
    again, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert (type(again.config.text_config), type(again.config.vision_config)) == (type(text), type(vision))
    batch = mixed_batch(model.config)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_are_those_of_the_patches_of_the_stock_encoder(encoder, final_norm):
    if final_norm and encoder == "clip_vision_model":
        with pytest.raises(ValueError, match="'clip_vision_model' has no norm that applies to patches"):
            pair_config("qwen2", encoder, vision_use_final_norm=True)
        return
    model = tiny_model(pair_config("qwen2", encoder, vision_use_final_norm=final_norm, use_coordinate_tokens=False))
    torch.manual_seed(1)
    stock = AutoModel.from_config(model.config.vision_config).eval()
    stock.load_state_dict(model.model.vision_tower.state_dict(), strict=False)
    for module in stock.modules():  # with the values of a trained norm, which are not 1 and 0
        if isinstance(module, torch.nn.LayerNorm) and module is getattr(stock, VISION_ENCODERS[encoder].final_norm or "", None):
            torch.nn.init.normal_(module.weight)
            if final_norm:
                getattr(model.model.vision_tower, VISION_ENCODERS[encoder].final_norm).load_state_dict(module.state_dict())
    pixels = random_images(2)
    with torch.no_grad():
        features = model.get_image_features(pixels).pooler_output
        outputs = stock(**stock_inputs(encoder, pixels), output_hidden_states=True)
        hidden = outputs.last_hidden_state if final_norm else outputs.hidden_states[-1]
        assert hidden.shape[1] == num_prefix_tokens(model.config.vision_config) + GRID**2
        expected = model.model.multi_modal_projector(hidden[:, -(GRID**2) :])
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=1e-4)


def stock_inputs(encoder: str, pixels: torch.Tensor) -> dict:
    if encoder != "siglip2_vision_model":
        return {"pixel_values": pixels}
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    patches = torch.stack([convert_image_to_patches(image, PATCH_SIZE) for image in pixels])
    shapes = torch.full((len(pixels), 2), GRID)
    return {"pixel_values": patches, "pixel_attention_mask": torch.ones(patches.shape[:2]), "spatial_shapes": shapes}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_of_a_patch_are_at_its_row_and_column(encoder):
    """An encoder whose layers add nothing to their input: each feature depends on the pixels of one patch."""
    model = tiny_model(pair_config("qwen2", encoder, use_coordinate_tokens=False))
    for name, parameter in model.model.vision_tower.named_parameters():
        if any(part in name for part in ("out_proj", "o_proj", "fc2", "output.dense", "down_proj", "layer_scale")):
            torch.nn.init.zeros_(parameter)
    pixels = random_images(1)
    changed = pixels.clone()
    changed[:, :, 4 * PATCH_SIZE : 5 * PATCH_SIZE, 7 * PATCH_SIZE : 8 * PATCH_SIZE] += 1  # row 4, column 7
    with torch.no_grad():
        difference = model.get_image_features(changed).pooler_output - model.get_image_features(pixels).pooler_output
    assert difference[0].norm(dim=-1).gt(1e-4).nonzero().flatten().tolist() == [4 * GRID + 7]


def test_training_step_has_a_gradient_for_every_trainable_weight_and_equal_ones_with_checkpointing(model):
    batch = mixed_batch(model.config)
    results = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model).train()
        if checkpointing:
            enable_checkpointing(trained, use_reentrant=False)
        torch.manual_seed(0)
        loss = trained(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        assert torch.isfinite(loss)
        results.append({name: parameter.grad for name, parameter in trained.named_parameters() if parameter.requires_grad})
    missing = [name for name, gradient in results[0].items() if gradient is None]
    assert not missing
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_generate_batch_equals_single_prompts(model, greedy):
    for row, single in enumerate(single_prompts(model.config)):
        assert torch.equal(model.generate(**single, **GREEDY)[0, -NEW:], greedy[row, -NEW:])


def test_generate_static_cache_equals_dynamic_cache(model, greedy):
    sequences = model.generate(**mixed_batch(model.config), **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(sequences, greedy)


def test_frozen_encoder_gives_equal_features_in_training_mode():
    """DINOv3 jitters, shifts and rescales the coordinates of patches at random in training mode."""
    model = tiny_model(pair_config("qwen2", "dinov3_vit"))
    model.model.vision_tower.config.pos_embed_rescale = 2.0
    pixels = random_images(1)
    expected = model.get_image_features(pixels).last_hidden_state
    model.train().model.vision_tower.requires_grad_(False)
    assert torch.equal(model.get_image_features(pixels).last_hidden_state, expected)
    model.train().model.vision_tower.requires_grad_(True)
    assert not torch.equal(model.get_image_features(pixels).last_hidden_state, expected)


def test_tie_word_embeddings_is_that_of_the_decoder_unless_given():
    config = pair_config("smollm3", "siglip_vision_model")
    assert config.text_config.tie_word_embeddings and config.tie_word_embeddings
    model = tiny_model(config)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not pair_config("smollm3", "siglip_vision_model", tie_word_embeddings=False).tie_word_embeddings
    assert not tiny_config().tie_word_embeddings


def test_prepare_model_for_training_trains_all_parts_except_the_mask_token():
    """The mask token of DINOv2 is not used: processes that train together would wait for its gradient."""
    model = tiny_model(pair_config("llama", "dinov2"))
    parts = ["vision_tower", "projector", "packer", "language_model", "input_embeddings", "output_embeddings"]
    prepare_model_for_training(model, parts)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.vision_tower.embeddings.mask_token"]


@pytest.mark.parametrize("decoder", DECODERS)
def test_prepare_model_for_training_adapts_the_linear_layers_of_the_decoder(decoder):
    model = prepare_model_for_training(
        tiny_model(pair_config(decoder, "clip_vision_model")), ["lora", "projector", "coordinate_embeddings"]
    )
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not [name for name, parameter in model.named_parameters() if ".lora_A." in name and "language_model.layers" not in name]
