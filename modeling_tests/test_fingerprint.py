# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a checkpoint: what it contains, what a check finds, and which commands write and remove it."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTModel, LlavaSTProcessor
from llava_st_hf.checkpoints.atomic import save_model_and_processor
from llava_st_hf.checkpoints.fingerprint import FINGERPRINT, check_checkpoint, read_fingerprint, served_arithmetic, write_fingerprint
from llava_st_hf.checkpoints.publishing import stage_folder
from llava_st_hf.checkpoints.weights_digest import weights_digest
from llava_st_hf.cli import main
from modeling_tests.factories import tiny_config
from modeling_tests.processors import model_for, tiny_processor, tiny_tokenizer


@pytest.fixture(scope="module")
def demo():
    """`(model, processor, fingerprint)` of the demo model in float32."""
    model = LlavaSTForConditionalGeneration.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()
    return model, LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH), read_fingerprint(DEMO_MODEL_PATH)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`(folder, model, processor)` of a model with random weights in half precision, saved with its fingerprint."""
    folder, processor = tmp_path_factory.mktemp("saved"), tiny_processor()
    model = model_for(processor).to(torch.float16)
    save_model_and_processor(model, processor, folder, fingerprint=True)
    return folder, model, processor


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(saved[0], tmp_path / "model")


def encode(demo) -> dict:
    _, processor, fingerprint = demo
    chat = fingerprint.chat(fingerprint.video)
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)


def features_of(model, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return model.get_video_features(inputs["pixel_values_videos"]).pooler_output


def test_demo_model_generates_the_tokens_and_features_of_its_fingerprint(demo):
    model, _, fingerprint = demo
    inputs = encode(demo)
    ids = model.generate(**inputs, max_new_tokens=len(fingerprint.token_ids), do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert fingerprint.check_tokens(ids.tolist()) == len(fingerprint.token_ids) == 24
    assert fingerprint.check_features(features_of(model, inputs)) < 1e-4


def test_fingerprint_question_has_coordinates_of_all_axes_and_a_video_of_a_few_kilobytes(demo):
    text = demo[2].messages[0]["content"][1]["text"]
    assert all(f"<{axis}-0" in text for axis in ("TEMP", "HEIGHT", "WIDTH"))
    assert "coordinate_values" not in encode(demo)  # bins: what a server computes from the text alone
    assert len(demo[2].video) < 10_000


def test_fingerprint_of_half_precision_weights_is_computed_in_float32_and_leaves_them_unchanged(saved):
    folder, model, processor = saved
    wide = LlavaSTForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored = read_fingerprint(folder)
    assert check_checkpoint(wide, processor, stored) == (len(stored.token_ids), pytest.approx(0, abs=1e-5))
    write_fingerprint(folder, model, processor)
    after = model.state_dict()
    assert all(after[name].dtype == torch.float16 and torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("step", [0, 10, 23])
def test_check_tokens_other_token_is_an_error_only_where_the_margin_is_above_the_tolerance(demo, step):
    fingerprint = demo[2]
    ids = list(fingerprint.token_ids)
    ids[step] += 1
    with pytest.raises(ValueError, match=f"at token {step + 1}: {ids[step]} instead of {fingerprint.token_ids[step]}"):
        fingerprint.check_tokens(ids, 0.9 * fingerprint.margins[step])
    ids[step + 1 :] = [0] * len(ids[step + 1 :])
    assert fingerprint.check_tokens(ids, 1.1 * fingerprint.margins[step]) == step


def test_check_tokens_of_an_empty_answer_is_an_error_and_of_a_shorter_one_is_not(demo):
    assert demo[2].check_tokens(demo[2].token_ids[:3]) == 3
    with pytest.raises(ValueError, match="No tokens were generated"):
        demo[2].check_tokens([])
    with pytest.raises(ValueError, match="'int7' must be one of float32"):
        demo[2].check_tokens([1], "int7")


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_check_features_finds_features_at_other_positions_missing_values_and_lape_without_output_rows(demo, arithmetic):
    model, _, fingerprint = demo
    inputs = encode(demo)
    features = features_of(model, inputs)
    for wrong in (features.roll(1, dims=1), features.masked_fill(features == features[0, 0, 0], float("nan"))):
        with pytest.raises(ValueError, match="features of the video"):
            fingerprint.check_features(wrong, arithmetic)
    with pytest.raises(ValueError, match=r"shape \(251, 160\) instead of \(252, 160\)"):
        fingerprint.check_features(features[:, 1:], arithmetic)
    rows = model.get_coordinate_output_embeddings()
    with torch.no_grad():
        wrong = model.get_video_features(inputs["pixel_values_videos"], coordinate_output_embeddings=torch.zeros_like(rows)).pooler_output
    with pytest.raises(ValueError, match="LAPE or packer"):
        fingerprint.check_features(wrong, arithmetic)


def test_served_arithmetic_is_that_of_the_weights_or_of_the_scheme_of_quantization():
    def scheme(name: str, **attributes):
        return SimpleNamespace(get_name=lambda: name, **attributes)

    assert served_arithmetic(torch.bfloat16, None) == "bfloat16"
    eight = [scheme("fp8"), scheme("bitsandbytes", load_in_8bit=True), scheme("gptq", weight_bits=8)]
    four = [scheme("bitsandbytes", load_in_8bit=False), scheme("awq", weight_bits=4), scheme("torchao")]
    assert {served_arithmetic(torch.bfloat16, one) for one in eight} == {"8-bit"}
    assert {served_arithmetic(torch.bfloat16, one) for one in four} == {"4-bit"}
    with pytest.raises(ValueError, match="float64"):
        served_arithmetic(torch.float64, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_check_checkpoint_accepts_the_demo_model_in_half_precision(demo, dtype):
    model = LlavaSTForConditionalGeneration.from_pretrained(DEMO_MODEL_PATH, dtype=dtype).eval()
    tokens, difference = check_checkpoint(model, demo[1], demo[2])
    assert tokens >= 3 and 0 < difference < 0.1


def test_fingerprint_of_a_stage_1_model_has_no_coordinates_in_its_question(tmp_path):
    processor = tiny_processor(tokenizer=tiny_tokenizer(0))
    model = model_for(processor, use_coordinate_tokens=False)
    save_model_and_processor(model, processor, tmp_path, fingerprint=True)
    stored = read_fingerprint(tmp_path)
    assert "<" not in stored.messages[0]["content"][1]["text"]
    assert check_checkpoint(model, processor, stored)[0] == len(stored.token_ids)


def test_read_fingerprint_of_other_weights_or_a_damaged_file_is_an_error_and_of_none_is_none(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="written for other weights"):
        read_fingerprint(folder)
    with pytest.raises(ValueError, match="written for other weights"):
        stage_folder(folder, folder.parent, "someone/model")
    (folder / FINGERPRINT).write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match="is damaged"):
        read_fingerprint(folder)
    (folder / FINGERPRINT).unlink()
    assert read_fingerprint(folder) is None


def test_weights_digest_does_not_depend_on_the_number_of_files(saved, tmp_path):
    folder, model, _ = saved
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model*.safetensors"))) > 2
    assert weights_digest(tmp_path) == weights_digest(folder)
    (tmp_path / "model-00001-of-00009.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=r"model-00001-of-00009\.safetensors is damaged"):
        weights_digest(tmp_path)


def test_saving_another_model_to_the_folder_removes_the_fingerprint(folder, saved):
    save_model_and_processor(saved[1], saved[2], folder)
    assert not (folder / FINGERPRINT).exists()


def test_upload_contains_the_fingerprint(saved, tmp_path):
    stage_folder(saved[0], tmp_path, "someone/model")
    assert read_fingerprint(tmp_path) == read_fingerprint(saved[0])


def test_fingerprint_command_writes_and_checks_a_folder(folder, capsys):
    (folder / FINGERPRINT).unlink()
    assert main(["fingerprint", str(folder), "--check"]) == 1
    assert f"has no {FINGERPRINT}: write it" in capsys.readouterr().err
    assert main(["fingerprint", str(folder)]) == 0
    assert main(["fingerprint", str(folder), "--check", "--dtype", "float32"]) == 0
    assert "24 of 24 tokens are equal; features differ by up to" in capsys.readouterr().out
    stored = json.loads((folder / FINGERPRINT).read_text())
    stored["features"][5][2] += 1
    (folder / FINGERPRINT).write_text(json.dumps(stored))
    assert main(["fingerprint", str(folder), "--check"]) == 1
    assert "1 of 48 features" in capsys.readouterr().err


def test_write_fingerprint_of_a_quantized_model_is_an_error(saved):
    model = model_for(saved[2])
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantized"):
        write_fingerprint(saved[0], model, saved[2])


@pytest.mark.parametrize(("attention", "server"), [("vllm", "vLLM"), ("sglang", "SGLang"), ("tgi", "Text Generation Inference")])
def test_model_built_by_a_server_without_the_plugin_is_an_error_that_names_the_package(attention, server):
    config = tiny_config()
    config.text_config._attn_implementation = attention
    with pytest.raises(ValueError, match=rf"^{server} would serve .*llava-st-hf\[serve\]"):
        LlavaSTModel(config)


def test_served_by_plugin_allows_the_attention_of_a_server_and_is_not_saved(tmp_path):
    config = tiny_config()
    config.served_by_plugin = True
    config.save_pretrained(tmp_path)
    assert not LlavaSTConfig.from_pretrained(tmp_path).served_by_plugin
    config.text_config._attn_implementation = "vllm"
    with pytest.raises(ValueError, match=r"attn_implementation=\"vllm\"` is not supported"):  # only the server registers it
        LlavaSTModel(config)


def test_fingerprint_margins_are_differences_of_the_two_highest_logits(demo):
    model, _, fingerprint = demo
    inputs = encode(demo)
    ids = torch.cat((inputs["input_ids"], torch.tensor([fingerprint.token_ids])), dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values_videos=inputs["pixel_values_videos"]).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
    best = logits.topk(2).values
    torch.testing.assert_close(torch.tensor(fingerprint.margins), best[:, 0] - best[:, 1], atol=1e-3, rtol=0)
