# SPDX-License-Identifier: Apache-2.0
"""Loading an original checkpoint: outputs and gradients equal those recorded from the original LLaVA-ST code."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from llava_st_hf import LlavaSTConfig, LlavaSTForConditionalGeneration, LlavaSTModel
from llava_st_hf.model.original_checkpoint_llava_st import PACKER_SPLITS, rename_original_key, translate_config
from modeling_tests.factories import tiny_model
from modeling_tests.reference import ORIGINAL_CHECKPOINT, case_inputs, cases, config_overrides, expected, strided


NUM_FAST, BASE_ROWS = 900, 581
TABLES = ("temporal", "spatial_height", "spatial_width")
RELEASED = {
    "model_type": "llava_qwen", "mm_resampler_type": "fast_slow_resampler", "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "vocab_size": 600, "hidden_size": 64, "num_temporal_tokens": 50, "num_spatial_tokens": 40,
}  # fmt: skip


def load(folder=ORIGINAL_CHECKPOINT, cls=LlavaSTForConditionalGeneration, **options):
    return cls.from_pretrained(folder, **config_overrides(), **options)


@pytest.fixture(scope="module")
def model():
    return load()


def close(actual, wanted, tolerance=1e-4):
    torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", cases("inference"), ids=lambda case: case["key"])
def test_model_inference_equals_the_original_code(model, case):
    key, inputs = case["key"], case_inputs(case, model.config)
    embeds = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    hook.remove()
    text = expected()[f"{key}.text_positions"].long()
    close(embeds[0][0, text], expected()[f"{key}.text_embeds"])
    close(strided(outputs.logits[0, text]), expected()[f"{key}.text_logits_stride11"])
    if case["modality"] == "video":
        slow = outputs.video_hidden_states[NUM_FAST:]
        close(strided(slow), expected()[f"{key}.slow_features_stride11"])
    else:
        close(outputs.image_hidden_states[:64], expected()[f"{key}.image_features_first64"])
    generated = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    assert generated[0, inputs["input_ids"].shape[1] :].tolist() == expected()[f"{key}.generated_ids"].tolist()


def test_fast_packer_equals_the_original_code_although_its_features_are_not_used(model):
    case = next(case for case in cases("inference") if case["modality"] == "video")
    pixels = case_inputs(case, model.config)["pixel_values_videos"]
    base = model.model.eval()
    with torch.no_grad():
        features = base._patch_features(pixels[0])[1][None]
        cells = base.packer.spatial(base._add_positions(features, None, model.get_coordinate_output_embeddings()))
        close(strided(base.packer.fast(cells)), expected()[f"{case['key']}.fast_features_stride11"])
        outputs = model.get_video_features(pixels).pooler_output[0]
    rows = base.get_input_embeddings().weight
    assert torch.equal(outputs[0], rows[model.config.video_start_token_id])
    assert torch.equal(outputs[1 : NUM_FAST - 1], rows[model.config.video_token_id].expand(NUM_FAST - 2, -1))
    assert torch.equal(outputs[NUM_FAST - 1], rows[model.config.video_end_token_id])


def released_gradient_norm(name: str, gradients: dict[str, torch.Tensor]) -> float:
    """Norm of our gradients that correspond to the parameter `name` of the original code; 0 if there are none."""
    tables = {f"model.{table}_{use}_embeddings.weight": (use, n) for use in ("input", "output") for n, table in enumerate(TABLES)}
    tables |= {"model.embed_tokens.weight": ("input", None), "lm_head.weight": ("output", None)}
    if name in tables:
        use, number = tables[name]
        matrix = gradients["model.language_model.embed_tokens.weight" if use == "input" else "lm_head.weight"]
        first = 0 if number is None else BASE_ROWS + 100 * number
        return matrix[first : BASE_ROWS if number is None else first + 100].norm().item()
    key = "model." + rename_original_key(name)
    for fused, parts in PACKER_SPLITS.items():
        if key.endswith(fused):
            names = [key.removesuffix(fused) + part for part in parts]
            return torch.cat([gradients[n].flatten() for n in names if n in gradients]).norm().item() if names[0] in gradients else 0.0
    return gradients[key].norm().item() if key in gradients else 0.0


@pytest.mark.parametrize("case", cases("training"), ids=lambda case: case["key"])
def test_model_training_loss_and_gradients_equal_the_original_code(model, case):
    key, inputs = case["key"], case_inputs(case, model.config)
    model.train().zero_grad()
    model.model.vision_tower.requires_grad_(False)
    loss = model(**inputs, labels=expected()[f"{key}.labels"].long()[None]).loss
    loss.backward()
    model.eval()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for use, matrix in (("input", "model.language_model.embed_tokens.weight"), ("output", "lm_head.weight")):
        for number, table in enumerate(TABLES):
            first = BASE_ROWS + 100 * number
            wanted = expected()[f"{key}.grad.{table}_{use}_embeddings_stride11"]
            assert (strided(gradients[matrix][first : first + 100]) - wanted).norm() <= 1e-4 * wanted.norm(), (table, use)
    for name, wanted in case["grad_norms"].items():
        assert released_gradient_norm(name, gradients) == pytest.approx(wanted, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("cls", [LlavaSTForConditionalGeneration, LlavaSTModel])
def test_from_pretrained_original_checkpoint_loads_every_tensor(cls):
    _, info = load(cls=cls, output_loading_info=True)
    assert not any(info.values()), info


def test_from_pretrained_sharded_original_checkpoint_has_equal_weights(model, tmp_path):
    for file in ORIGINAL_CHECKPOINT.iterdir():
        if file.name != "model.safetensors":
            shutil.copy(file, tmp_path)
    tensors, index = load_file(ORIGINAL_CHECKPOINT / "model.safetensors"), {}
    for number in range(3):  # round robin: tensors that are merged are in different files
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        part = dict(sorted(tensors.items())[number::3])
        save_file(part, tmp_path / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    sharded, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in sharded.state_dict().items())


def test_save_pretrained_after_loading_an_original_checkpoint_round_trips(model, tmp_path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "llava_st" and saved["ignore_prompt_x_coordinates"] and saved["disable_fast_stream"]
    again, info = LlavaSTForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("released", [True, False])
def test_auto_model_without_head_has_the_features_of_the_full_model(model, tmp_path, released):
    if released:
        base = load(cls=AutoModel)
    else:
        model.save_pretrained(tmp_path)
        base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is LlavaSTModel
    pixels = torch.randn(1, 2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    head = {"coordinate_output_embeddings": model.lm_head.weight[BASE_ROWS : BASE_ROWS + 300]}
    with torch.no_grad():
        wanted = model.eval().get_image_features(pixels[0]).pooler_output
        assert torch.equal(base.get_image_features(pixels[0], **head).pooler_output, wanted)
        assert torch.equal(base.get_video_features(pixels, **head).pooler_output, model.get_video_features(pixels).pooler_output)


def test_auto_config_translates_an_original_checkpoint():
    config = AutoConfig.from_pretrained(ORIGINAL_CHECKPOINT)
    assert type(config) is LlavaSTConfig
    assert config.text_config.vocab_size == BASE_ROWS + 300 and config.coordinate_start_token_id == BASE_ROWS
    assert config.ignore_prompt_x_coordinates and config.disable_fast_stream


def test_translate_config_vocab_size_includes_the_coordinate_tokens():
    translated = translate_config(dict(RELEASED))
    assert translated["text_config"]["vocab_size"] == 600 + 50 + 2 * 40
    assert (translated["num_temporal_bins"], translated["num_spatial_bins"]) == (50, 40)


def test_translate_config_sets_both_compatibility_flags():
    translated = translate_config(dict(RELEASED))
    assert translated["ignore_prompt_x_coordinates"] is True and translated["disable_fast_stream"] is True


def test_translate_config_stage_1_checkpoint_has_no_coordinate_tokens():
    released = {key: value for key, value in RELEASED.items() if not key.startswith("num_")}
    translated = translate_config(released)
    assert translated["use_coordinate_tokens"] is False and translated["text_config"]["vocab_size"] == 600


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type is 'spatial_pool'"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "clip-vit-large"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ],
)
def test_config_of_another_llava_model_raises_with_the_setting(change, culprit):
    with pytest.raises(ValueError, match=culprit):
        LlavaSTConfig.from_dict({**RELEASED, **change})


@pytest.mark.parametrize("model_type", ["qwen2", "llava_onevision"])
def test_from_pretrained_folder_of_another_model_raises_with_type_and_path(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": ["Other"]}))
    with pytest.raises(ValueError, match=f"{model_type}.*not a LLaVA-ST model") as error:
        LlavaSTForConditionalGeneration.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_from_pretrained_saved_model_loads_without_translation(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    again, info = LlavaSTForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
