# SPDX-License-Identifier: Apache-2.0
"""`LlavaSTConfig`: derived values, saving and loading, and errors for invalid settings."""

import json

import pytest
from transformers import AutoConfig, Qwen2Config, SiglipVisionConfig

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from modeling_tests.factories import BASE_VOCABULARY, tiny_config


LAYERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def test_config_defaults_equal_the_published_model():
    config = LlavaSTConfig()
    assert (config.grid_size, config.packed_grid_size, config.fast_grid_size) == (27, 9, 3)
    assert (config.vision_config.num_hidden_layers, config.vision_config.hidden_size) == (26, 1152)
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (28, 3584)
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert not (config.ignore_prompt_x_coordinates or config.disable_fast_stream or config.use_downsample_image)
    assert config.coordinate_start_token_id + 300 == config.text_config.vocab_size


def test_config_token_ids_are_derived_from_the_end_of_the_vocabulary():
    config = tiny_config()
    ids = [getattr(config, field) for field in SPECIAL_TOKENS]
    assert ids == list(range(BASE_VOCABULARY, BASE_VOCABULARY + 14))
    assert config.coordinate_start_token_id == BASE_VOCABULARY + 14
    assert config.coordinates.end_token_id == config.text_config.vocab_size


def test_config_without_coordinate_tokens_ends_with_the_placeholder_tokens():
    config = tiny_config(use_coordinate_tokens=False)
    assert config.coordinate_start_token_id is None
    assert config.width_output_token_id == config.text_config.vocab_size - 1


@pytest.mark.parametrize(
    "options", [{}, {"use_coordinate_tokens": False}, {"ignore_prompt_x_coordinates": True, "disable_fast_stream": True}]
)
def test_config_saved_and_loaded_is_equal(tmp_path, options):
    config = tiny_config(**options)
    config.save_pretrained(tmp_path)
    for again in (LlavaSTConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is LlavaSTConfig
        assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_config_accepts_sub_configuration_objects():
    text, vision = Qwen2Config(**tiny_config().text_config.to_dict()), SiglipVisionConfig(**tiny_config().vision_config.to_dict())
    config = LlavaSTConfig(text_config=text, vision_config=vision, num_temporal_bins=6, num_spatial_bins=5)
    assert config.text_config is text and config.grid_size == 9


def test_config_overrides_on_loading_keep_other_sub_configuration_values(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config = LlavaSTConfig.from_pretrained(tmp_path, text_config={"intermediate_size": 48}, disable_fast_stream=True)
    assert config.text_config.intermediate_size == 48 and config.disable_fast_stream
    assert config.text_config.hidden_size == 32 and config.vision_config.image_size == 18


def test_config_token_ids_do_not_change_when_the_vocabulary_is_enlarged(tmp_path):
    config = tiny_config()
    start = config.coordinate_start_token_id
    config.text_config.vocab_size += 64
    config.save_pretrained(tmp_path)
    assert LlavaSTConfig.from_pretrained(tmp_path).coordinate_start_token_id == start


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"packer_spatial_stride": 2}, "packer_spatial_stride=2"),
        ({"fast_spatial_stride": 2}, "fast_spatial_stride=2"),
        ({"packer_temporal_stride": 0}, "packer_temporal_stride must be at least 1"),
        ({"packer_num_attention_heads": 3}, "packer_hidden_size=16 must be a multiple of packer_num_attention_heads=3"),
        ({"packer_hidden_size": 0}, "packer_hidden_size must be at least 1, got 0"),
        ({"packer_num_attention_heads": 0}, "packer_num_attention_heads must be at least 1, got 0"),
        ({"packer_spatial_stride": -1}, "packer_spatial_stride must be at least 1, got -1"),
        ({"fast_spatial_stride": 0}, "fast_spatial_stride must be at least 1, got 0"),
        ({"vision_chunk_size": 0}, "vision_chunk_size must be at least 1, or None.*got 0"),
        ({"vision_config": {"num_attention_heads": 3}}, "vision_config.hidden_size=32 must be a multiple of num_attention_heads=3"),
        ({"vision_config": {"num_channels": 1}}, r"vision_config.num_channels must be 3 \(RGB\), got 1"),
        ({"vision_config": {"patch_size": 19}}, "vision_config.patch_size=19 must not be larger than image_size=18"),
        ({"text_config": {"num_key_value_heads": 3}}, "text_config.num_attention_heads=4 must be a multiple of num_key_value_heads=3"),
        ({"num_temporal_bins": 1}, "num_temporal_bins"),
        ({"num_spatial_bins": 1001, "text_config": {"vocab_size": 9999}}, "num_spatial_bins"),
        ({"text_config": {"vocab_size": 20}}, "image_start_token_id=-10 lies outside the vocabulary of 20"),
        ({"image_token_id": 7, "video_token_id": 7}, "video_token_id and image_token_id are both 7"),
        ({"video_token_id": 115}, "video_token_id=115 overlaps the coordinate tokens 113…128"),
        ({"coordinate_start_token_id": -4}, "coordinate_start_token_id=-4"),
        ({"vision_config": {"image_size": 20}}, "packer_spatial_stride=3 does not divide the vision grid of 10×10"),
    ],
)
def test_config_inconsistent_values_raise_an_error_that_names_them(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        tiny_config(**options)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("text_config", name) for name in (*LAYERS, "vocab_size", "num_key_value_heads", "max_position_embeddings")),
        *(("vision_config", name) for name in (*LAYERS, "image_size", "patch_size")),
    ],
)
def test_config_sub_configuration_sizes_below_1_raise(part, name):
    options = {"coordinate_start_token_id": 113} | {field: 99 + number for number, field in enumerate(SPECIAL_TOKENS)}
    with pytest.raises(ValueError, match=rf"{part}\.{name} must be at least 1, got 0"):
        tiny_config(**options, **{part: {name: 0}})


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("text_config", {"model_type": "nothing"}, "text_config has the model_type 'nothing', which transformers does not have"),
        ("text_config", SiglipVisionConfig(), "text_config has the model_type 'siglip_vision_model', which is not a causal language model"),
        ("text_config", {"model_type": "bert"}, "'bert', whose decoder has no embed_tokens and no layers and no norm"),
        ("text_config", {"model_type": "gpt2"}, "'gpt2', whose decoder has no embed_tokens and no layers and no norm"),
        ("text_config", {"model_type": "t5"}, "'t5', which is not a causal language model"),
        ("text_config", {"model_type": "bart"}, "has is_encoder_decoder=True"),
        ("text_config", {"model_type": "mamba"}, "'mamba', a decoder with a recurrent state"),
        ("text_config", {"model_type": "qwen3_next"}, "'qwen3_next', a decoder with a recurrent state"),
        ("text_config", {"model_type": "gemma2"}, "'gemma2' has final_logit_softcapping=30.0"),
        ("text_config", {"model_type": "cohere"}, "'cohere' has logit_scale=0.0625"),
        ("text_config", {"model_type": "gemma3"}, "'gemma3' is the configuration of a multimodal model"),
        ("text_config", {"model_type": "mixtral", "output_router_logits": True}, "output_router_logits=True"),
        ("vision_config", {"model_type": "nothing"}, "vision_config has the model_type 'nothing'; a vision encoder must have a square"),
        ("vision_config", {"model_type": "swin"}, "vision_config has the model_type 'swin'"),
        ("vision_config", {"model_type": "yolos"}, "vision_config has the model_type 'yolos'"),
        ("vision_config", {"model_type": "siglip"}, "give the vision_config of it, of the type 'siglip_vision_model'"),
        ("vision_config", {"model_type": "siglip2_vision_model", "num_patches": 250}, "num_patches must be a square number, got 250"),
    ],
)
def test_config_sub_configuration_of_another_model_type_raises(tmp_path, part, value, message):
    with pytest.raises(ValueError, match=message):
        LlavaSTConfig(**{part: value})
    if isinstance(value, dict):
        (tmp_path / "config.json").write_text(json.dumps({**tiny_config().to_dict(), part: value}))
        with pytest.raises(ValueError, match=message):
            AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"coordinate_start_token_id": 120}, "The coordinate tokens 120…135 lie outside the vocabulary of 129"),
        ({"image_token_id": 5000}, "image_token_id=5000 lies outside the vocabulary of 129"),
    ],
)
def test_model_token_ids_beyond_the_vocabulary_raise(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        LlavaSTForConditionalGeneration(tiny_config(**options))


def test_config_loaded_from_another_model_raises_with_type_and_path(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    with pytest.raises(ValueError, match="llava_onevision") as error:
        LlavaSTConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)
