# SPDX-License-Identifier: Apache-2.0
"""Creation of the stage-1 model from a decoder folder and an encoder folder of tiny models."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitImageProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from llava_st_hf.checkpoints.conversion import add_coordinate_tokens, add_coordinate_tokens_to_processor
from llava_st_hf.checkpoints.stage1_parts import create_stage1_model_from_parts, parts_config
from llava_st_hf.cli import main
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from modeling_tests.processors import encode, photo, user


SIZES = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
PACKER = {"packer_hidden_size": 16, "packer_num_attention_heads": 2}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # not those of SigLIP
NUM_ROWS = 300  # 40 more than the tokenizer has


def write_decoder(folder, model_type="llama", chat=False, **settings):
    """Writes a decoder with random weights and the tokenizer of a base model, which has a BOS token and no ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"] if chat else [], special_tokens=True)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", bos)])
    config = AutoConfig.for_model(
        model_type, **{**SIZES, "vocab_size": NUM_ROWS, "num_key_value_heads": 2, "max_position_embeddings": 512, **settings}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, len(tokenizer)


def write_encoder(folder, model_type="dinov2", **settings):
    sizes = {name: value for name, value in SIZES.items() if name != "intermediate_size" or not model_type.startswith("dinov2")}
    config = AutoConfig.for_model(model_type, **{**sizes, "image_size": 126, "patch_size": 14, **settings})
    torch.manual_seed(1)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    BitImageProcessor(image_mean=MEAN, image_std=STD, resample=2).save_pretrained(folder)
    return model


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "decoder", tmp_path / "encoder"


@pytest.mark.parametrize("chat", [False, True], ids=["base", "chat"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_create_stage1_model_from_parts_copies_both_parts_and_adds_tokens(folders, tied, chat):
    decoder, num_tokens = write_decoder(folders[0], tie_word_embeddings=tied, chat=chat)
    encoder = write_encoder(folders[1])
    model, processor = create_stage1_model_from_parts(*folders, dtype="float32", config_overrides=PACKER)
    assert model.config.tie_word_embeddings == tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    tokenizer = processor.tokenizer
    assert len(tokenizer) == num_tokens + (0 if chat else 2) + 14 == model.config.text_config.vocab_size
    ids = [getattr(model.config, field) for field in SPECIAL_TOKENS]
    assert ids == tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values()))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == model.config.text_config.eos_token_id == end
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    for matrix, source in (
        (model.get_input_embeddings().weight, decoder.get_input_embeddings().weight),
        (model.lm_head.weight, decoder.lm_head.weight),
    ):
        assert torch.equal(matrix[:num_tokens], source[:num_tokens])
        torch.testing.assert_close(matrix[num_tokens:], source[:num_tokens].mean(0).expand(len(tokenizer) - num_tokens, -1))
    for image_processor in (processor.image_processor, processor.video_processor):
        assert list(image_processor.image_mean) == MEAN and list(image_processor.image_std) == STD
        assert image_processor.resample == 2 and image_processor.size["height"] == 126

    pixels, input_ids = torch.randn(2, 3, 126, 126), torch.arange(40)[None]
    with torch.no_grad():
        hidden = encoder(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        features = model.model.multi_modal_projector(hidden)
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, features, atol=1e-5, rtol=1e-4)
        logits = decoder(input_ids=input_ids).logits[..., :num_tokens]
        torch.testing.assert_close(model(input_ids=input_ids).logits[..., :num_tokens], logits, atol=1e-5, rtol=1e-4)


def test_cli_create_stage1_of_parts_output_loads_generates_and_gets_coordinate_tokens(folders, tmp_path):
    write_decoder(folders[0], "qwen3", head_dim=16)
    write_encoder(folders[1], "dinov3_vit", num_register_tokens=2)
    (tmp_path / "overrides.json").write_text(json.dumps({**PACKER, "vision_config": {"num_register_tokens": 2}}))
    output = tmp_path / "output"
    command = ["create-stage1", str(folders[0]), str(output), "--vision-encoder", str(folders[1]), "--dtype", "float32"]
    assert main([*command, "--config-overrides", str(tmp_path / "overrides.json")]) == 0
    model, report = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not any(report.values())
    assert (model.config.text_config.model_type, model.config.vision_config.model_type) == ("qwen3", "dinov3_vit")
    add_coordinate_tokens(model, num_temporal_bins=6, num_spatial_bins=5)
    processor = add_coordinate_tokens_to_processor(model, AutoProcessor.from_pretrained(output))
    inputs = encode(processor, user(photo(), "What is at [<w0.1><h0.1><w0.5><h0.5>]?"), add_generation_prompt=True)
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    assert int((inputs["coordinate_values"] == inputs["coordinate_values"]).sum()) == 4  # not NaN
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3


def test_create_stage1_model_from_parts_with_final_norm_keeps_all_layers(folders):
    write_decoder(folders[0])
    encoder = write_encoder(folders[1])
    model, _ = create_stage1_model_from_parts(*folders, dtype="float32", config_overrides={**PACKER, "vision_use_final_norm": True})
    pixels = torch.randn(1, 3, 126, 126)
    with torch.no_grad():
        features = model.model.multi_modal_projector(encoder(pixels).last_hidden_state[:, 1:])
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, features, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["dinov2", "siglip_vision_model", "clip_vision_model", "vit", "ijepa"])
def test_create_stage1_model_from_parts_other_image_size_interpolates_position_embeddings(folders, encoder):
    """As the encoder itself does at this size."""
    write_decoder(folders[0])
    stock = write_encoder(folders[1], encoder, image_size=70)
    overrides = {**PACKER, "vision_config": {"image_size": 126}}
    model, processor = create_stage1_model_from_parts(*folders, dtype="float32", config_overrides=overrides)
    assert processor.image_processor.size["height"] == 126 and model.config.grid_size == 9
    pixels = torch.randn(1, 3, 126, 126)
    options = {} if encoder == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        hidden = stock(pixels, output_hidden_states=True, **options).hidden_states[-2][:, -81:]
        features = model.model.multi_modal_projector(hidden)
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, features, atol=1e-4, rtol=1e-3)


def test_create_stage1_model_from_parts_takes_the_encoder_of_a_model_of_text_and_images(folders):
    write_decoder(folders[0])
    vision = {**SIZES, "image_size": 126, "patch_size": 14}
    stock = SiglipModel(SiglipConfig(vision_config=vision, text_config={**SIZES, "vocab_size": 50})).eval()
    stock.save_pretrained(folders[1])
    BitImageProcessor(image_mean=(0.5,) * 3, image_std=(0.5,) * 3).save_pretrained(folders[1])
    model, _ = create_stage1_model_from_parts(*folders, dtype="float32", config_overrides=PACKER)
    pixels = torch.randn(1, 3, 126, 126)
    with torch.no_grad():
        features = model.model.multi_modal_projector(stock.vision_model(pixels, output_hidden_states=True).hidden_states[-2])
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, features, atol=1e-5, rtol=1e-4)


# Errors


@pytest.mark.parametrize(
    "decoder, encoder, message",
    [
        ({"model_type": "gpt2"}, {}, "'gpt2', whose decoder has no embed_tokens"),
        ({}, {"image_size": 140}, "packer_spatial_stride=3 does not divide the vision grid of 10×10"),
        ({"model_type": "phi"}, {}, "'phi', whose decoder has no norm"),
    ],
)
def test_parts_config_parts_that_do_not_fit_raise(folders, decoder, encoder, message):
    write_decoder(folders[0], **decoder)
    write_encoder(folders[1], **encoder)
    with pytest.raises(ValueError, match=message):
        parts_config(*folders, PACKER)


def test_create_stage1_model_from_parts_head_with_bias_raises(folders, monkeypatch):
    write_decoder(folders[0])
    write_encoder(folders[1])
    load = AutoModelForCausalLM.from_pretrained

    def with_bias(*args, **kwargs):
        model, report = load(*args, **kwargs)
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(NUM_ROWS))
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", with_bias)
    with pytest.raises(ValueError, match=r"head of .* has a bias"):
        create_stage1_model_from_parts(*folders, config_overrides=PACKER)


def test_create_stage1_model_from_parts_decoder_with_other_logits_raises(folders, monkeypatch):
    """A decoder that scales its logits by a setting that is not known."""
    decoder, _ = write_decoder(folders[0])
    write_encoder(folders[1])
    forward = type(decoder).forward

    def scaled(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits = outputs.logits * 2
        return outputs

    monkeypatch.setattr(type(decoder), "forward", scaled)
    with pytest.raises(ValueError, match="computes other logits as a part of LLaVA-ST than alone"):
        create_stage1_model_from_parts(*folders, config_overrides=PACKER)


def test_create_stage1_model_from_parts_encoder_without_image_processor_raises(folders):
    write_decoder(folders[0])
    write_encoder(folders[1])
    (folders[1] / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json"):
        create_stage1_model_from_parts(*folders, config_overrides=PACKER)


def test_cli_create_stage1_of_a_decoder_without_encoder_exits_with_1(folders, tmp_path, capsys):
    write_decoder(folders[0])
    assert main(["create-stage1", str(folders[0]), str(tmp_path / "output")]) == 1
    assert "give --vision-encoder" in capsys.readouterr().err and not (tmp_path / "output").exists()
