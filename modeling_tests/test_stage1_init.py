# SPDX-License-Identifier: Apache-2.0
"""Creation of the stage-1 model from tiny LLaVA-OneVision checkpoints of both layouts."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.checkpoints.conversion import add_coordinate_tokens, add_coordinate_tokens_to_processor
from llava_st_hf.checkpoints.stage1_init import create_stage1_model, stage1_config
from llava_st_hf.cli import main
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from modeling_tests.processors import CHAT_TOKENS, encode, photo, user


NUM_TOKENS = 259  # bytes and chat tokens
NUM_ROWS = 320  # padded, as the embeddings of Qwen2
DEPTH = 2
OVERRIDES = {
    "vision_config": {"num_hidden_layers": DEPTH, "image_size": 126},
    "packer_hidden_size": 16,
    "packer_num_attention_heads": 2,
}
VISION = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "image_size": 126, "patch_size": 14,
}  # fmt: skip
TEXT = {
    "vocab_size": NUM_ROWS, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": NUM_TOKENS - 1, "pad_token_id": NUM_TOKENS - 3,
}  # fmt: skip
# Maps a parameter name of the transformers model to that in a file of the original code.
RELEASED_NAMES = {
    r"^model\.vision_tower\.": "model.vision_tower.vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^model\.multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^model\.language_model\.": "model.",
}
OLD_NAMES = {
    r"^model\.vision_tower\.": "vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.": "multi_modal_projector.",
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
    r"^model\.image_newline": "image_newline",
}


def tokenizer(*more: str) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template="not {{ ours }}"
    )
    fast.add_tokens([*CHAT_TOKENS, *more], special_tokens=True)
    return fast


def source_model(vision=None, text=None, **overrides) -> LlavaOnevisionForConditionalGeneration:
    torch.manual_seed(0)
    vision_config = {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION, **(vision or {})}
    config = LlavaOnevisionConfig(
        vision_config=vision_config,
        text_config={"model_type": "qwen2", **TEXT, **(text or {})},
        image_token_index=NUM_TOKENS,
        video_token_index=NUM_TOKENS + 1,
        **overrides,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def renamed(model, names: dict[str, str]) -> dict[str, torch.Tensor]:
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for pattern, replacement in names.items():
        weights = {re.sub(pattern, replacement, key): tensor for key, tensor in weights.items()}
    return weights


def write_weights(folder, weights: dict[str, torch.Tensor], shards: int = 1) -> None:
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys, index = sorted(weights), {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: weights[key] for key in keys[shard::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def released_config(tied: bool = False) -> dict:
    return {
        **TEXT, "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "rope_theta": 10000.0, "rope_scaling": None,
        "tie_word_embeddings": tied, "mm_hidden_size": 32, "mm_patch_merge_type": "spatial_unpad", "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None, "mm_vision_select_layer": -2, "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def write_released(folder, model, shards: int = 1, **config) -> dict:
    """Writes a folder in the layout of the original LLaVA-OneVision code; returns the configuration overrides for it."""
    folder.mkdir()
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**released_config(model.config.tie_word_embeddings), **config}))
    write_weights(folder, renamed(model, RELEASED_NAMES), shards)
    return {**OVERRIDES, "vision_config": VISION}


def write_transformers(folder, model, **save) -> dict:
    """Writes a folder in the layout of transformers."""
    model.save_pretrained(folder, **save)
    tokenizer("<image>", "<video>").save_pretrained(folder)
    return OVERRIDES


def write_old_transformers(folder, model, shards: int = 1) -> dict:
    """Writes a folder in the layout of transformers 4."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    tokenizer("<image>", "<video>").save_pretrained(folder)
    write_weights(folder, renamed(model, OLD_NAMES), shards)
    return OVERRIDES


WRITERS = {
    "released": write_released,
    "released, sharded": lambda folder, model: write_released(folder, model, shards=3),
    "transformers": write_transformers,
    "transformers, sharded": lambda folder, model: write_transformers(folder, model, max_shard_size="50KB"),
    "transformers, new names": lambda folder, model: write_transformers(folder, model, save_original_format=False),
    "transformers, old names": write_old_transformers,
    "transformers, old names, sharded": lambda folder, model: write_old_transformers(folder, model, shards=2),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_create_stage1_model_copies_all_weights_except_the_packer(tmp_path, write, tied):
    source = source_model(text={"tie_word_embeddings": tied})
    overrides = write(tmp_path / "source", source)
    model, processor = create_stage1_model(tmp_path / "source", dtype="float32", config_overrides=overrides)
    first = len(processor.tokenizer) - len(SPECIAL_TOKENS)
    assert first in (NUM_TOKENS, NUM_TOKENS + 2)
    assert not (model.config.use_coordinate_tokens or model.config.ignore_prompt_x_coordinates or model.config.disable_fast_stream)
    assert model.config.tie_word_embeddings == tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    ids = [getattr(model.config, field) for field in SPECIAL_TOKENS]
    assert ids == processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS.values())) == list(range(first, first + 14))

    theirs = source.state_dict()
    for key, tensor in model.state_dict().items():
        if key.startswith("model.packer."):
            continue
        expected = theirs[key]
        if key in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
            assert len(tensor) == first + 14 == model.config.text_config.vocab_size
            assert torch.equal(tensor[:first], expected[:first])
            torch.testing.assert_close(tensor[first:], expected[:first].mean(0).expand(14, -1))
        else:
            assert torch.equal(tensor, expected), key

    pixels, input_ids = torch.randn(2, 3, 126, 126), torch.arange(40)[None]
    with torch.no_grad():
        hidden = source.model.vision_tower(pixels, output_hidden_states=True).hidden_states[source.config.vision_feature_layer]
        features = source.model.multi_modal_projector(hidden)
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, features, atol=1e-5, rtol=1e-5)
        logits = source(input_ids=input_ids).logits[..., :first]
        torch.testing.assert_close(model(input_ids=input_ids).logits[..., :first], logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_cli_create_stage1_output_loads_with_auto_classes_and_generates(tmp_path, layout):
    source, output = tmp_path / "source", tmp_path / "output"
    (tmp_path / "overrides.json").write_text(json.dumps(WRITERS[layout](source, source_model())))
    assert main(["create-stage1", str(source), str(output), "--config-overrides", str(tmp_path / "overrides.json")]) == 0
    assert all(key.startswith("model.") or key == "lm_head.weight" for key in load_file(output / "model.safetensors"))
    model, report = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not any(report.values())
    assert isinstance(model, LlavaSTForConditionalGeneration) and model.dtype == torch.bfloat16
    processor = AutoProcessor.from_pretrained(output)
    inputs = encode(processor, user(photo(), "What is this?"), add_generation_prompt=True)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 79
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    generated = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_create_stage1_model_saved_model_accepts_coordinate_tokens_of_stage_2(tmp_path, tied):
    overrides = write_released(tmp_path / "source", source_model(text={"tie_word_embeddings": tied}))
    model, processor = create_stage1_model(tmp_path / "source", config_overrides=overrides)
    model.save_pretrained(tmp_path / "stage1")
    processor.save_pretrained(tmp_path / "stage1")
    model = LlavaSTForConditionalGeneration.from_pretrained(tmp_path / "stage1", dtype="float32")
    add_coordinate_tokens(model, num_temporal_bins=6, num_spatial_bins=5)
    processor = add_coordinate_tokens_to_processor(model, AutoProcessor.from_pretrained(tmp_path / "stage1"))
    assert processor.num_temporal_bins == 6 and processor.num_spatial_bins == 5
    assert model.config.coordinate_start_token_id == NUM_TOKENS + 14
    inputs = encode(processor, user(photo(), "What is at [<w0.1><h0.1><w0.5><h0.5>]?"), add_generation_prompt=True)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.shape[-1] == NUM_TOKENS + 14 + 16 and logits.isfinite().all()


def test_create_stage1_model_packer_is_initialized_from_the_seed_only(tmp_path):
    overrides = {**write_released(tmp_path / "source", source_model()), "packer_hidden_size": 64}
    state = torch.get_rng_state()
    packers = [
        create_stage1_model(tmp_path / "source", dtype="float32", seed=seed, config_overrides=overrides)[0].model.packer
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (packer.state_dict() for packer in packers)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["slow.query_mlp.linear_1.weight"], other["slow.query_mlp.linear_1.weight"])
    assert not torch.equal(first["slow.query_mlp.linear_1.weight"], first["fast.query_mlp.linear_1.weight"])
    for packer in packers[0].children():
        assert 0.018 < packer.query_mlp.linear_1.weight.std() < 0.022
        assert (packer.query_norm.weight == 1).all() and (packer.query_norm.bias == 0).all() and (packer.q_proj.bias == 0).all()
        bound = (6 / (4 * 64)) ** 0.5  # Xavier uniform of the fused (192, 64) matrix
        assert 0.9 * bound < packer.q_proj.weight.abs().max() <= bound


FULL_SIZE = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "max_position_embeddings": 32768,
}  # fmt: skip


def test_stage1_config_full_size_needs_no_overrides(tmp_path):
    folders = tmp_path / "released", tmp_path / "transformers"
    for folder in folders:
        folder.mkdir()
    (folders[0] / "config.json").write_text(json.dumps({**released_config(), **FULL_SIZE, "rope_theta": 1e6}))
    text_config = {"model_type": "qwen2", "rope_theta": 1e6, **FULL_SIZE}
    LlavaOnevisionConfig(text_config=text_config).save_pretrained(folders[1])
    for folder in folders:
        config = stage1_config(folder)
        expected = LlavaSTConfig()
        assert config.vision_config.to_dict() == expected.vision_config.to_dict()
        assert config.grid_size == 27 and config.text_config.vocab_size == 152064
        for name in (*FULL_SIZE.keys() - {"vocab_size"}, "rope_parameters", "rms_norm_eps", "use_sliding_window"):
            assert getattr(config.text_config, name) == getattr(expected.text_config, name), name


def test_create_stage1_model_unpadded_vocabulary_is_extended(tmp_path):
    overrides = write_released(tmp_path / "source", source_model(text={"vocab_size": NUM_TOKENS}), vocab_size=NUM_TOKENS)
    model, _ = create_stage1_model(tmp_path / "source", config_overrides=overrides)
    assert len(model.lm_head.weight) == len(model.get_input_embeddings().weight) == NUM_TOKENS + 14


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_create_stage1_model_vision_tower_with_unused_last_layer_drops_it(tmp_path, layout):
    source = source_model(vision={"num_hidden_layers": DEPTH + 1}, vision_feature_layer=-2)
    overrides = WRITERS[layout](tmp_path / "source", source)
    model, _ = create_stage1_model(tmp_path / "source", dtype="float32", config_overrides=overrides)
    assert len(model.model.vision_tower.encoder.layers) == DEPTH
    pixels = torch.randn(1, 3, 126, 126)
    with torch.no_grad():
        hidden = source.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        expected = source.model.multi_modal_projector(hidden)
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected, atol=1e-5, rtol=1e-5)


# Errors


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"vision": {"num_hidden_layers": DEPTH + 1}}, "vision_feature_layer -1 of a vision tower of 3 layers"),
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer \[-1, -2\]"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy 'default'"),
        ({"vision_feature_layer": 1}, "vision_feature_layer 1 of"),
        ({"vision": {"image_size": 112}}, "8×8 patches .* LLaVA-ST's has 9×9"),
        ({"vision": {"model_type": "clip_vision_model"}}, "vision_config.model_type 'clip_vision_model'"),
        ({"text": {"model_type": "llama"}}, "text_config.model_type 'llama'"),
    ],
)
def test_create_stage1_model_unsupported_transformers_setting_raises_with_its_name(tmp_path, settings, message):
    vision, text = settings.pop("vision", {}), settings.pop("text", {})
    source_model(vision=vision, text=text, **settings).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        create_stage1_model(tmp_path, config_overrides=OVERRIDES)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_type": "llava_next"}, "a model of type 'llava_next'"),
        ({"model_type": "llava_st"}, "a model of type 'llava_st'"),
        ({"mm_resampler_type": "fast_slow_resampler"}, "mm_resampler_type 'fast_slow_resampler'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer -1"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "clip-vit-large"),
        ({"vocab_size": 100}, "259 tokens, but the model has only 100 embeddings"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_create_stage1_model_unsupported_original_setting_raises_with_its_name(tmp_path, settings, message):
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**released_config(), **settings}))
    with pytest.raises(ValueError, match=message):
        create_stage1_model(tmp_path, config_overrides={**OVERRIDES, "vision_config": VISION})


def test_create_stage1_model_configuration_without_vocab_size_raises(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_qwen"}))
    with pytest.raises(ValueError, match="no vocab_size"):
        create_stage1_model(tmp_path)


@pytest.mark.parametrize("name", ["use_coordinate_tokens", "ignore_prompt_x_coordinates", "disable_fast_stream"])
def test_create_stage1_model_override_of_compatibility_flag_or_coordinates_raises(tmp_path, name):
    overrides = write_released(tmp_path / "source", source_model())
    with pytest.raises(ValueError, match=name):
        create_stage1_model(tmp_path / "source", config_overrides={**overrides, name: True})


@pytest.fixture
def folder(tmp_path):
    write_released(tmp_path / "source", source_model(), shards=2)
    return tmp_path / "source"


def refusal(folder, capsys) -> str:
    """Returns the error message of the command, and checks that nothing is written."""
    overrides = folder.parent / "overrides.json"
    overrides.write_text(json.dumps({**OVERRIDES, "vision_config": VISION}))
    assert main(["create-stage1", str(folder), str(folder.parent / "output"), "--config-overrides", str(overrides)]) == 1
    assert not (folder.parent / "output").exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_cli_create_stage1_folder_without_tokenizer_exits_with_1(folder, capsys):
    for path in folder.glob("token*"):
        path.unlink()
    assert "no tokenizer of a Qwen2 chat model" in refusal(folder, capsys)


def test_cli_create_stage1_tokenizer_with_special_tokens_exits_with_1(folder, capsys):
    tokenizer("<im_patch>").save_pretrained(folder)
    assert "already has <im_patch>" in refusal(folder, capsys)


def test_cli_create_stage1_folder_without_configuration_exits_with_1(folder, capsys):
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder, capsys)


def test_cli_create_stage1_folder_without_weights_exits_with_1(folder, capsys):
    for path in folder.glob("model*"):
        path.unlink()
    assert "model.safetensors" in refusal(folder, capsys)


def test_cli_create_stage1_missing_shard_exits_with_1_and_its_name(folder, capsys):
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(folder, capsys)


def test_cli_create_stage1_damaged_shard_exits_with_1(folder, capsys):
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"no tensors")
    assert "damaged" in refusal(folder, capsys)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "lacks the tensors model.language_model.layers.1.mlp.up_proj.weight."),
        (lambda w: w.pop("lm_head.weight"), "lacks the tensors lm_head.weight."),
        (lambda w: w.pop("model.mm_projector.2.bias"), "lacks the tensors model.multi_modal_projector.linear_2.bias."),
        (lambda w: w.update({"model.extra.weight": torch.zeros(2)}), "contains model.extra.weight, which"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), "language_model.norm.weight in .* has shape (3,); .* requires (32,)."),
        (lambda w: w.update({"lm_head.weight": torch.zeros(300, 32)}), "lm_head.weight in .* has shape (300, 32); .* (320, 32)."),
        (lambda w: [w.pop(key) for key in list(w) if "vision_tower" in key], "no weights of the vision tower (model.vision_tower."),
        (
            lambda w: [w.pop(key) for key in list(w) if "encoder.layers.1." in key],
            "lacks the tensors model.vision_tower.encoder.layers.1",
        ),
    ],
)
def test_cli_create_stage1_missing_or_unexpected_tensors_exits_with_1_and_their_names(tmp_path, capsys, change, message):
    folder = tmp_path / "source"
    write_released(folder, source_model())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    write_weights(folder, weights)
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), refusal(folder, capsys))


@pytest.mark.parametrize("failing", [LlavaSTForConditionalGeneration, LlavaSTProcessor])
def test_create_stage1_failing_while_saving_keeps_the_old_model(folder, capsys, monkeypatch, failing):
    output = folder.parent / "output"
    output.mkdir()
    (output / "config.json").write_text("old")

    def full_disk(self, target, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, "save_pretrained", full_disk)
    overrides = folder.parent / "overrides.json"
    overrides.write_text(json.dumps({**OVERRIDES, "vision_config": VISION}))
    assert main(["create-stage1", str(folder), str(output), "--config-overrides", str(overrides)]) == 1
    assert f"The model could not be saved to {output} " in capsys.readouterr().err.splitlines()[-1]
    assert {path.name: path.read_text() for path in output.iterdir()} == {"config.json": "old"}


def test_cli_create_stage1_output_equal_to_source_exits_with_1(folder, capsys):
    assert main(["create-stage1", str(folder), str(folder)]) == 1
    assert "is the checkpoint itself" in capsys.readouterr().err
