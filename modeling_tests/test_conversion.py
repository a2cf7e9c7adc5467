# SPDX-License-Identifier: Apache-2.0
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.checkpoints.conversion import add_coordinate_tokens, add_coordinate_tokens_to_processor, merge_lora
from llava_st_hf.cli import main
from modeling_tests.factories import tiny_config, tiny_model
from modeling_tests.processors import PICTURE, tiny_processor, tiny_tokenizer
from modeling_tests.reference import ORIGINAL_CHECKPOINT, ORIGINAL_LORA, analytic_pixels, config_overrides, expected, strided


def merged_logits(model) -> torch.Tensor:
    """Every eleventh logit at the text positions of the reference case inference.0."""
    input_ids = expected()["inference.0.input_ids"].long()[None]
    with torch.no_grad():
        logits = model.eval()(input_ids=input_ids, pixel_values_videos=analytic_pixels(1, 100)[None]).logits[0]
    return strided(logits[expected()["inference.0.text_positions"].long()])


def copy_folder(source, target):
    shutil.copytree(source, target)
    for path in [target, *target.iterdir()]:
        os.chmod(path, 0o755)
    return target


@pytest.fixture
def stage_folder(tmp_path):
    return copy_folder(ORIGINAL_LORA, tmp_path / "stage")


def test_merge_lora_into_the_original_checkpoint_equals_the_reference():
    model = merge_lora(ORIGINAL_CHECKPOINT, ORIGINAL_LORA, **config_overrides())
    torch.testing.assert_close(merged_logits(model), expected()["lora.0.text_logits_stride11"], atol=1e-4, rtol=0)


def test_merge_lora_into_a_saved_base_equals_the_reference(tmp_path):
    LlavaSTForConditionalGeneration.from_pretrained(ORIGINAL_CHECKPOINT, **config_overrides()).save_pretrained(tmp_path)
    logits = merged_logits(merge_lora(tmp_path, ORIGINAL_LORA))
    torch.testing.assert_close(logits, expected()["lora.0.text_logits_stride11"], atol=1e-4, rtol=0)


def test_merge_lora_into_a_stage_1_base_adds_coordinate_tokens_and_saves_them(tmp_path):
    base = copy_folder(ORIGINAL_CHECKPOINT, tmp_path / "base")
    weights = {key: tensor for key, tensor in load_file(base / "model.safetensors").items() if "put_embeddings" not in key}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    del config["num_temporal_tokens"], config["num_spatial_tokens"]
    (base / "config.json").write_text(json.dumps(config))
    assert not LlavaSTForConditionalGeneration.from_pretrained(base, **config_overrides()).config.use_coordinate_tokens

    merge_lora(base, ORIGINAL_LORA, **config_overrides()).save_pretrained(tmp_path / "merged")
    model = LlavaSTForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged_logits(model), expected()["lora.0.text_logits_stride11"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"])
def test_merge_lora_missing_adapter_file_is_an_error_that_names_it(stage_folder, name):
    (stage_folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder)


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"rank_pattern": {"q_proj": 8}}])
def test_merge_lora_unsupported_adapter_setting_is_an_error_that_names_it(stage_folder, setting):
    path = stage_folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(ValueError, match=next(iter(setting))):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder)


class _Trap:
    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_merge_lora_pickle_with_code_is_not_executed(stage_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"base_model.model.lm_head.weight": _Trap()}, stage_folder / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"non_lora_trainables.bin is damaged or contains objects other than tensors") as caught:
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError) and "weights_only" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("base_model.model.model.unheard_of.weight", torch.zeros(2), "model.unheard_of.weight, which is not a tensor"),
        ("base_model.model.model.layers.7.input_layernorm.weight", torch.zeros(64), "model.layers.7"),
        ("base_model.model.model.norm.weight", torch.zeros(63), r"shape \(63,\)"),
        ("base_model.model.model.embed_tokens.weight", torch.zeros(580, 64), r"shape \(580, 64\)"),
        ("model.norm.weight", torch.zeros(64), "begins with 'base_model.model.'"),
    ],
)
def test_merge_lora_tensor_that_does_not_fit_the_base_is_named(stage_folder, key, tensor, message):
    torch.save({key: tensor}, stage_folder / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=message):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder, **config_overrides())


def test_merge_lora_incomplete_lora_pair_is_an_error(stage_folder):
    weights = load_file(stage_folder / "adapter_model.safetensors")
    dropped = next(key for key in weights if "lora_B" in key)
    save_file({key: tensor for key, tensor in weights.items() if key != dropped}, stage_folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="only lora_A of"):
        merge_lora(ORIGINAL_CHECKPOINT, stage_folder, **config_overrides())


@pytest.mark.parametrize("loaded", [False, True])
def test_add_coordinate_tokens_appends_new_embeddings_and_keeps_the_others(tmp_path, loaded):
    model = tiny_model(use_coordinate_tokens=False)
    if loaded:  # as stage 2 does with the result of stage 1
        model.save_pretrained(tmp_path)
        model = LlavaSTForConditionalGeneration.from_pretrained(tmp_path)
    rows = model.config.text_config.vocab_size
    before, head = model.get_input_embeddings().weight.clone(), model.lm_head.weight.clone()
    add_coordinate_tokens(model, num_temporal_bins=6, num_spatial_bins=5)
    assert model.config.use_coordinate_tokens and model.config.coordinate_start_token_id == rows
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == rows + 16
    torch.testing.assert_close(model.get_input_embeddings().weight[:rows], before)
    torch.testing.assert_close(model.lm_head.weight[:rows], head)
    assert 0.7 < model.get_input_embeddings().weight[rows:].std() < 1.3  # N(0, 1)
    assert model.lm_head.weight[rows:].abs().max() <= 32**-0.5  # U(±1/√d)


def test_add_coordinate_tokens_to_a_model_that_has_them_is_an_error():
    with pytest.raises(ValueError, match="already"):
        add_coordinate_tokens(tiny_model(tiny_config()), 6, 5)


# Generated stage folders for a stage-1 base model


TABLES = {
    f"base_model.model.model.{axis}_{use}_embeddings.weight": (6 if axis == "temporal" else 5, 32)
    for use in ("input", "output")
    for axis in ("temporal", "spatial_height", "spatial_width")
}
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def stage_1(tmp_path):
    """Folders of a stage-1 base model with its processor, and of a stage that adds coordinate embeddings."""
    base, stage = tmp_path / "base", tmp_path / "stage"
    processor = tiny_processor(num_temporal_bins=0, num_spatial_bins=0)
    config = tiny_config(
        use_coordinate_tokens=False,
        vision_config={"image_size": 126, "patch_size": 14},
        text_config={"vocab_size": len(processor.tokenizer)},
        packer_temporal_stride=5,
    )
    tiny_model(config).save_pretrained(base)
    processor.save_pretrained(base)
    stage.mkdir()
    (stage / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    save_file({LORA.format("A"): torch.ones(2, 32), LORA.format("B"): torch.ones(32, 2)}, stage / "adapter_model.safetensors")
    torch.save({key: torch.randn(shape) for key, shape in TABLES.items()}, stage / "non_lora_trainables.bin")
    return base, stage


def test_merge_lora_command_on_a_stage_1_base_gives_a_working_model_and_processor(stage_1, tmp_path):
    base, stage = stage_1
    assert main(["merge-lora", str(base), str(stage), str(tmp_path / "merged")]) == 0
    grounder = pipeline("video-grounding", model=str(tmp_path / "merged"))
    assert grounder.processor.num_temporal_bins == 6 and grounder.processor.num_spatial_bins == 5
    vocabulary = grounder.model.config.coordinates
    assert grounder.processor.tokenizer.convert_tokens_to_ids("<WIDTH-004>") == vocabulary.end_token_id - 1
    answer = grounder(PICTURE, text="What is at [<w0.1><h0.1><w0.5><h0.5>]?", max_new_tokens=2)
    assert answer.keys() == {"text", "events", "notes", "media", "query"}


def test_add_coordinate_tokens_to_processor_of_another_base_is_an_error(stage_1):
    model = merge_lora(*stage_1)
    for other in (tiny_processor(), tiny_processor(tokenizer=longer_tokenizer())):
        with pytest.raises(ValueError, match="does not belong to the merged model: the id of <TEMP-000>"):
            add_coordinate_tokens_to_processor(model, other)


def longer_tokenizer():
    tokenizer = tiny_tokenizer(0, 0)
    tokenizer.add_tokens(["<more>"])
    return tokenizer


def test_add_coordinate_tokens_to_processor_without_new_tokens_returns_it_unchanged():
    processor = tiny_processor()
    assert add_coordinate_tokens_to_processor(tiny_model(use_coordinate_tokens=False), processor) is processor


@pytest.mark.parametrize("missing", TABLES)
def test_merge_lora_missing_coordinate_table_is_named(stage_1, missing):
    base, stage = stage_1
    torch.save({key: torch.randn(shape) for key, shape in TABLES.items() if key != missing}, stage / "non_lora_trainables.bin")
    with pytest.raises(
        ValueError, match=f"non_lora_trainables.bin has coordinate embeddings .* lacks {missing.removeprefix('base_model.model.')}: all six"
    ):
        merge_lora(base, stage)


@pytest.mark.parametrize("shape", [(), (1, 32), (1001, 32)])
def test_merge_lora_coordinate_table_with_a_wrong_shape_is_named(stage_1, shape):
    base, stage = stage_1
    torch.save({key: torch.zeros(shape) for key in TABLES}, stage / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"model.temporal_input_embeddings.weight in .* has shape"):
        merge_lora(base, stage)


def write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("adapter_config.json", [1], "adapter_config.json must contain a JSON object"),
        ("adapter_config.json", b"{", "adapter_config.json is damaged"),
        ("adapter_config.json", b"\xff", "adapter_config.json is damaged"),
        ("adapter_config.json", {"peft_type": "LORA"}, "adapter_config.json has lora_alpha=None"),
        ("adapter_config.json", {"lora_alpha": "8"}, "adapter_config.json has lora_alpha='8'"),
        ("adapter_model.safetensors", b"no tensors", "adapter_model.safetensors is damaged"),
        ("non_lora_trainables.bin", b"", "non_lora_trainables.bin is damaged"),
        ("non_lora_trainables.bin", b"no pickle", "non_lora_trainables.bin is damaged"),
    ],
)
def test_merge_lora_damaged_file_is_named(stage_1, name, content, message):
    base, stage = stage_1
    write(stage / name, content)
    with pytest.raises(ValueError, match=message):
        merge_lora(base, stage)


@pytest.mark.parametrize("content, message", [([torch.zeros(2)], "got a list"), ({1: torch.zeros(2)}, "contains 1; every entry")])
def test_merge_lora_pickle_without_named_tensors_is_an_error(stage_1, content, message):
    base, stage = stage_1
    torch.save(content, stage / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=f"non_lora_trainables.bin .*{message}"):
        merge_lora(base, stage)


@pytest.mark.parametrize("a, b", [((2, 32), (32, 3)), ((0, 32), (32, 0)), ((32,), (32, 1))])
def test_merge_lora_pair_with_inconsistent_shapes_is_named(stage_1, a, b):
    base, stage = stage_1
    save_file({LORA.format("A"): torch.zeros(a), LORA.format("B"): torch.zeros(b)}, stage / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj; they must be \(rank, inputs\)"):
        merge_lora(base, stage)


@pytest.mark.parametrize("rslora, scaling", [(False, 4 / 2), (True, 4 / 2**0.5)])
def test_merge_lora_scales_the_update_by_alpha_over_rank_or_sqrt_of_rank(stage_1, rslora, scaling):
    base, stage = stage_1
    write(stage / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 4, "use_rslora": rslora})
    weight = "model.language_model.layers.0.self_attn.q_proj.weight"
    before = LlavaSTForConditionalGeneration.from_pretrained(base).get_parameter(weight)
    update = merge_lora(base, stage).get_parameter(weight) - before
    torch.testing.assert_close(update, torch.full((32, 32), 2 * scaling))  # B A is 2 everywhere


def test_merge_lora_into_bfloat16_weights_adds_in_float32(stage_1):
    base, stage = stage_1
    generator = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(2, 32, generator=generator), "B": torch.randn(32, 2, generator=generator) / 3}
    save_file({LORA.format(side): tensor for side, tensor in pair.items()}, stage / "adapter_model.safetensors")
    weight = "model.language_model.layers.0.self_attn.q_proj.weight"
    before = LlavaSTForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16).get_parameter(weight)
    merged = merge_lora(base, stage, dtype=torch.bfloat16).get_parameter(weight)
    expected = (before.float() + 2 * pair["B"] @ pair["A"]).bfloat16()
    assert torch.equal(merged, expected)
    in_bfloat16 = before + 2 * (pair["B"].bfloat16() @ pair["A"].bfloat16())
    assert not torch.equal(in_bfloat16, expected)


@pytest.mark.parametrize("command", ["convert", "merge-lora"])
@pytest.mark.parametrize("failing", [LlavaSTForConditionalGeneration, LlavaSTProcessor])
def test_convert_and_merge_lora_failing_while_saving_keep_the_old_model(stage_1, tmp_path, capsys, monkeypatch, command, failing):
    base, stage = stage_1
    target = tmp_path / "target"
    arguments = [str(base), str(target)] if command == "convert" else [str(base), str(stage), str(target)]
    assert main([command, *arguments]) == 0
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= before.keys()

    def full_disk(self, folder, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, "save_pretrained", full_disk)
    assert main([command, *arguments]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"The model could not be saved to {target} " in message and "No space left" in message and "GiB are free" in message
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_merge_lora_into_the_folder_of_the_adapter_is_an_error(stage_1, capsys):
    base, stage = stage_1
    assert main(["merge-lora", str(base), str(stage), str(stage)]) == 1
    assert f"The output {stage} is the folder of an adapter" in capsys.readouterr().err
    assert (stage / "adapter_model.safetensors").is_file()


def test_merge_lora_adapter_none_is_an_error():
    with pytest.raises(ValueError, match="adapter=None must be the path"):
        merge_lora("anywhere", None)
