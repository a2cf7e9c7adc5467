# SPDX-License-Identifier: Apache-2.0
"""The model classes: positions, features, batching, saving, adapters, compilation and devices."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForImageTextToText, Trainer, TrainingArguments

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTModel
from llava_st_hf.model.cache_name_llava_st import CACHE_NAME
from modeling_tests.factories import (
    NAN,
    enable_checkpointing,
    image_tokens,
    left_padded,
    mixed_batch,
    random_images,
    random_videos,
    single_prompts,
    tiny_config,
    tiny_model,
    video_tokens,
)


def logits_of(model, batch, **options) -> torch.Tensor:
    """Returns the logits at all positions except padding."""
    with torch.no_grad():
        return model(**batch, **options).logits[batch["attention_mask"].bool()]


def axis_rows(model, axis: str, length: int) -> torch.Tensor:
    """Computes (length, hidden) by the formula: the mean of the input and output embeddings, linearly interpolated."""
    ids = list(model.config.coordinates.token_ids(axis))
    table = [(model.get_input_embeddings().weight[i] + model.lm_head.weight[i]) / 2 for i in ids]
    rows = []
    for step in range(length):
        source = max(0.0, (step + 0.5) * len(table) / length - 0.5)
        low = min(int(source), len(table) - 1)
        rows.append(torch.lerp(table[low], table[min(low + 1, len(table) - 1)], min(source - low, 1.0)))
    return torch.stack(rows)


@pytest.mark.parametrize("num_frames", [3, 6, 7, 100])
@torch.no_grad()
def test_lape_video_adds_interpolated_embeddings_of_three_axes(model, num_frames):
    features = torch.randn(2, num_frames, 9, 9, 32)
    wanted = features + axis_rows(model, "temporal", num_frames)[:, None, None]
    wanted = wanted + axis_rows(model, "height", 9)[:, None] + axis_rows(model, "width", 9)
    torch.testing.assert_close(
        model.model._add_positions(features, None, model.get_coordinate_output_embeddings()), wanted, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_lape_image_adds_the_first_temporal_embedding(model):
    features, first = torch.randn(2, 1, 9, 9, 32), model.config.coordinate_start_token_id
    start = (model.get_input_embeddings().weight[first] + model.lm_head.weight[first]) / 2
    wanted = features + start + axis_rows(model, "height", 9)[:, None] + axis_rows(model, "width", 9)
    torch.testing.assert_close(
        model.model._add_positions(features, None, model.get_coordinate_output_embeddings()), wanted, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_embed_inputs_positions_between_bins_interpolate_input_embeddings(model):
    rows, vocabulary = model.get_input_embeddings().weight, model.config.coordinates
    ids = torch.tensor([[vocabulary.start_token_id, model.config.height_output_token_id, 7, vocabulary.start_token_id + 2]])
    embeds, _ = model.model.embed_inputs(ids, torch.tensor([[0.33, 0.9, NAN, NAN]]))
    temporal, height = vocabulary.token_ids("temporal"), vocabulary.token_ids("height")
    torch.testing.assert_close(embeds[0, 0], torch.lerp(rows[temporal[1]], rows[temporal[2]], 0.65))  # 0.33 · 5 = 1.65
    torch.testing.assert_close(embeds[0, 1], torch.lerp(rows[height[3]], rows[height[4]], 0.6))  # 0.9 · 4 = 3.6
    assert torch.equal(embeds[0, 2], rows[7]) and torch.equal(embeds[0, 3], rows[vocabulary.start_token_id + 2])


@torch.no_grad()
def test_ignore_prompt_x_coordinates_affects_only_the_width_input_placeholder():
    plain = tiny_model(ignore_prompt_x_coordinates=True)
    config, rows = plain.config, plain.get_input_embeddings().weight
    ids = torch.tensor([[config.width_input_token_id, config.width_output_token_id, config.height_input_token_id]])
    embeds, _ = plain.model.embed_inputs(ids, torch.full(ids.shape, 0.4))
    assert torch.equal(embeds[0, 0], rows[ids[0, 0]])
    assert not torch.equal(embeds[0, 1], rows[ids[0, 1]]) and not torch.equal(embeds[0, 2], rows[ids[0, 2]])


def test_neighbour_propagation_mixes_gradients_of_input_embeddings_only_in_training(model):
    vocabulary, gradients = model.config.coordinates, []
    ids = torch.tensor([[vocabulary.start_token_id + 2]])
    for training in (True, False):
        trained = copy.deepcopy(model).train(training)
        embeds, _ = trained.model.embed_inputs(ids, torch.full(ids.shape, NAN))
        assert torch.equal(embeds[0, 0], model.get_input_embeddings().weight[ids[0, 0]])
        embeds.sum().backward()
        gradients.append(trained.get_input_embeddings().weight.grad[vocabulary.start_token_id : vocabulary.end_token_id, 0])
    assert gradients[0].tolist() == [0.25, 0.5, 2.0, 0.5, 0.25, 0.125] + [0.0] * 10  # (I + M)·g, within one axis
    assert gradients[1].tolist() == [0.0, 0.0, 1.0] + [0.0] * 13


@torch.no_grad()
def test_image_features_are_projected_patches_with_positions(model):
    pixels = random_images(2)
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]  # no post-norm
    projected = model.model.multi_modal_projector(hidden).view(2, 1, 9, 9, -1)
    wanted = model.model._add_positions(projected, None, model.get_coordinate_output_embeddings()).flatten(1, 3)
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, wanted)


@torch.no_grad()
def test_video_features_are_the_fast_then_the_slow_stream(model):
    pixels = random_videos(2)
    projected = torch.stack([model.model._patch_features(video)[1] for video in pixels])
    fast, slow = model.model.packer(model.model._add_positions(projected, None, model.get_coordinate_output_embeddings()))
    features = model.get_video_features(pixels)
    torch.testing.assert_close(features.pooler_output, torch.cat((fast.flatten(1, 3), slow.flatten(1, 3)), dim=1))
    assert features.last_hidden_state.shape == (2, 4, 81, 32)


@torch.no_grad()
def test_use_downsample_image_applies_the_spatial_packer():
    downsampling = tiny_model(use_downsample_image=True)
    ids = torch.tensor([[5, *image_tokens(downsampling.config), 6]])
    outputs = downsampling(input_ids=ids, pixel_values=random_images(1))
    assert outputs.image_hidden_states.shape == (9, 32)


@torch.no_grad()
def test_disable_fast_stream_gives_the_token_embeddings_instead(model):
    dropping = tiny_model(disable_fast_stream=True)
    config, rows = dropping.config, dropping.get_input_embeddings().weight
    features = dropping.get_video_features(random_videos(1)).pooler_output[0]
    fast = [config.video_start_token_id, config.video_token_id, config.video_token_id, config.video_end_token_id]
    assert torch.equal(features[:4], rows[fast])
    torch.testing.assert_close(features[4:], model.get_video_features(random_videos(1)).pooler_output[0, 4:])


@pytest.mark.parametrize(("temporal", "spatial"), [(6, 5), (7, 5), (100, 100)])
@pytest.mark.parametrize("num_frames", [1, 3, 7, 100])
def test_forward_any_number_of_frames_and_bins_gives_finite_logits(temporal, spatial, num_frames):
    sized = tiny_model(num_temporal_bins=temporal, num_spatial_bins=spatial)
    tokens = video_tokens(sized.config, num_frames)
    with torch.no_grad():
        outputs = sized(input_ids=torch.tensor([[5, *tokens, 6]]), pixel_values_videos=random_videos(1, num_frames))
    assert outputs.video_hidden_states.shape == (len(tokens), 32)
    assert outputs.logits.isfinite().all()


def test_forward_batch_equals_single_prompts(model, batch):
    with torch.no_grad():
        together = model(**batch).logits
        for row, single in enumerate(single_prompts(model.config)):
            mask = batch["attention_mask"][row].bool()
            torch.testing.assert_close(together[row, mask], model(**single).logits[0], atol=1e-5, rtol=1e-5)


def test_forward_eager_and_sdpa_attention_agree(model, batch):
    other, wanted = copy.deepcopy(model), logits_of(model, batch)
    for implementation in ("eager", "sdpa"):
        other.set_attn_implementation(implementation)
        torch.testing.assert_close(logits_of(other, batch), wanted, atol=2e-5, rtol=0)


@torch.no_grad()
def test_forward_prefill_and_decode_step_compile_to_one_graph(model, batch):
    torch.compiler.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    plain, ours = model(**batch), compiled(**batch)
    torch.testing.assert_close(ours.logits, plain.logits, atol=2e-5, rtol=0)
    step = {"input_ids": torch.full((4, 1), 7), "attention_mask": F.pad(batch["attention_mask"], (0, 1), value=1)}
    wanted = model(**step, **{CACHE_NAME: plain[CACHE_NAME]}).logits
    torch.testing.assert_close(compiled(**step, **{CACHE_NAME: ours[CACHE_NAME]}).logits, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["pixel_values", "pixel_values_videos"])
def test_forward_features_without_matching_tokens_raises_with_both_numbers(model, batch, kind):
    batch[kind] = torch.cat((batch[kind], batch[kind]))
    counts = {"pixel_values": (486, 243), "pixel_values_videos": (44, 22)}[kind]
    with pytest.raises(ValueError, match=rf"give {counts[0]} features, but the text has {counts[1]}"):
        model(**batch)


def test_forward_ids_with_embeddings_or_coordinates_without_ids_raises(model, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(input_ids=batch["input_ids"], inputs_embeds=embeds)
    with pytest.raises(ValueError, match="coordinate_values go with input_ids"):
        model(inputs_embeds=embeds, coordinate_values=batch["coordinate_values"])


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"use_coordinate_tokens": False}], ids=str)
def test_save_and_load_give_equal_logits_and_features_of_the_base_model(tmp_path, options):
    whole = tiny_model(**options)
    config = whole.config
    batch = left_padded([[10, *image_tokens(config), 11], [12, *video_tokens(config), 13]])
    batch |= {"pixel_values": random_images(1), "pixel_values_videos": random_videos(1)}
    whole.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is LlavaSTForConditionalGeneration and not any(info.values()), info
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == config.tie_word_embeddings
    assert torch.equal(logits_of(again, batch), logits_of(whole, batch))
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is LlavaSTModel and not any(info.values()), info
    output_embeddings = whole.get_coordinate_output_embeddings()
    with torch.no_grad():
        wanted = whole.model(**batch, coordinate_output_embeddings=output_embeddings)
        ours = base(**batch, coordinate_output_embeddings=output_embeddings)
    assert torch.equal(ours.last_hidden_state, wanted.last_hidden_state)
    assert torch.equal(ours.video_hidden_states, wanted.video_hidden_states)


def test_base_model_has_no_head_in_its_state_and_saves_all_other_weights(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    base = AutoModel.from_pretrained(tmp_path / "whole")
    assert base.get_output_embeddings() is None and "lm_head.weight" not in base.state_dict()
    base.save_pretrained(tmp_path / "base")
    _, info = LlavaSTForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"} and not info["unexpected_keys"]


# Output embeddings of the coordinate tokens


def test_base_model_media_without_output_embeddings_raises(model):
    base = AutoModel.from_config(model.config).eval()
    ids = torch.tensor([[5, *image_tokens(model.config), 6]])
    for call in (
        lambda: base(input_ids=ids, pixel_values=random_images(1)),
        lambda: base.get_image_features(random_images(1)),
        lambda: base.get_video_features(random_videos(1)),
    ):
        with pytest.raises(ValueError, match=r"coordinate_output_embeddings is missing.*lm_head.weight\[113:129\]"):
            call()
    assert base(input_ids=ids[:, :1]).last_hidden_state.isfinite().all()  # text needs no output embeddings


@torch.no_grad()
def test_base_model_with_given_output_embeddings_gives_the_features_of_the_full_model(model):
    base = AutoModel.from_config(model.config).eval()
    base.load_state_dict(model.model.state_dict())
    rows = model.lm_head.weight[113:129]
    for name, pixels in (("get_image_features", random_images(2)), ("get_video_features", random_videos(1))):
        wanted = getattr(model, name)(pixels).pooler_output
        assert torch.equal(getattr(base, name)(pixels, coordinate_output_embeddings=rows).pooler_output, wanted)


@pytest.mark.parametrize("options", [{"tie_word_embeddings": True}, {"use_coordinate_tokens": False}], ids=str)
@torch.no_grad()
def test_base_model_tied_or_without_coordinates_needs_no_output_embeddings(options):
    whole = tiny_model(**options)
    assert whole.get_coordinate_output_embeddings() is None
    pixels = random_videos(1)
    assert torch.equal(whole.model.get_video_features(pixels).pooler_output, whole.get_video_features(pixels).pooler_output)


def test_image_features_output_embeddings_of_wrong_shape_raises_with_the_expected_shape(model):
    with pytest.raises(ValueError, match=r"coordinate_output_embeddings must have the shape \(16, 32\).*got \(15, 32\)"):
        model.model.get_image_features(random_images(1), coordinate_output_embeddings=model.lm_head.weight[:15])


def test_image_features_quantized_head_raises(model):
    quantized = copy.deepcopy(model)
    quantized.lm_head.weight = torch.nn.Parameter(quantized.lm_head.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"lm_head has a weight of type torch.int8.*Exclude lm_head from quantization"):
        quantized.get_image_features(random_images(1))


# Features


@pytest.mark.parametrize("where", ["arguments", "configuration", "configuration of the encoder"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_video_features_hidden_states_and_attentions_of_the_encoder_are_returned_on_request(where, frozen, chunk_size):
    model, options = tiny_model(), {"vision_chunk_size": chunk_size}
    model.set_attn_implementation("eager")
    model.model.vision_tower.requires_grad_(not frozen)
    names = ("output_hidden_states", "output_attentions")
    if where == "arguments":
        options |= dict.fromkeys(names, True)
    for name in names:
        if where != "arguments":
            setattr(model.config if where == "configuration" else model.config.vision_config, name, True)
    with torch.set_grad_enabled(not frozen):
        features = model.get_video_features(random_videos(2), **options)
    assert [states.shape for states in features.hidden_states] == [(8, 81, 32)] * 3
    assert [weights.shape for weights in features.attentions] == [(8, 4, 81, 81)] * 2
    torch.testing.assert_close(features.hidden_states[-1].unflatten(0, (2, 4)), features.last_hidden_state)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"use_coordinate_tokens": False}], ids=str)
def test_backward_gives_every_parameter_a_gradient(options):
    trained = tiny_model(**options).train()
    config = trained.config
    batch = left_padded([[10, *image_tokens(config), 11], [12, *video_tokens(config), 13]])
    trained(**batch, pixel_values=random_images(1), pixel_values_videos=random_videos(1), labels=batch["input_ids"]).loss.backward()
    assert [name for name, parameter in trained.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("frozen", [(), ("vision_tower", "multi_modal_projector", "language_model", "lm_head")], ids=["all", "packer"])
def test_gradient_checkpointing_gives_equal_gradients(model, batch, frozen, reentrant):
    """Also for a packer whose input needs no gradient, as in stage 1: features of frozen modules, without added positions."""
    if frozen:
        model = tiny_model(use_coordinate_tokens=False)
        batch = {**mixed_batch(tiny_config()), "coordinate_values": None}
        batch["input_ids"] = batch["input_ids"].clamp(max=model.config.text_config.vocab_size - 1)
    gradients = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model).train()
        for name, parameter in trained.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        if checkpointing:
            enable_checkpointing(trained, reentrant)
            trained.enable_input_require_grads()  # as trainers do
        trained(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in trained.named_parameters() if p.requires_grad})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("frozen", [True, False])
def test_vision_chunk_size_bounds_each_pass_and_changes_neither_loss_nor_gradients(model, batch, frozen):
    """Sets the size by argument and by configuration; a frozen encoder stores no graph."""
    trained = copy.deepcopy(model).train()
    trained.model.vision_tower.requires_grad_(not frozen)
    trained.model.multi_modal_projector.requires_grad_(not frozen)
    sizes, results = [], []
    trained.model.vision_tower.register_forward_hook(
        lambda module, args, output: sizes.append((len(args[0]), output.last_hidden_state.requires_grad))
    )
    for default, argument in ((None, None), (3, None), (3, 1)):
        trained.config.vision_chunk_size = default
        trained.zero_grad()
        outputs = trained(**batch, labels=batch["input_ids"], vision_chunk_size=argument)
        outputs.loss.backward()
        results.append((outputs.loss.detach(), {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}))
    passes = [3, 4] + [3, 3, 1] + [1] * 7  # three images and a video of four frames
    assert sizes == [(size, not frozen) for size in passes]
    assert any(name.startswith("model.vision_tower") for name in results[0][1]) == (not frozen)
    assert results[0][1]["model.packer.slow.k_proj.weight"].abs().sum() > 0
    for loss, gradients in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        assert gradients.keys() == results[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_vision_chunk_size_below_1_raises(model):
    with pytest.raises(ValueError, match="vision_chunk_size must be at least 1, got 0"):
        model.get_image_features(random_images(1), vision_chunk_size=0)


# Padding media


@pytest.mark.parametrize("options", [{}, {"use_downsample_image": True}, {"tie_word_embeddings": True}], ids=str)
@pytest.mark.parametrize("row", range(4))
def test_padding_media_change_neither_loss_nor_gradients_and_give_every_weight_a_gradient(options, row):
    trained = tiny_model(**options).train()
    single = single_prompts(trained.config)[row]
    padding = {}
    if "pixel_values" not in single:
        padding |= {"pixel_values": torch.zeros(1, 3, 18, 18), "image_mask": torch.tensor([False])}
    if "pixel_values_videos" not in single:
        padding |= {"pixel_values_videos": torch.zeros(1, 1, 3, 18, 18), "video_mask": torch.tensor([False])}
    results = []
    for extra in ({}, padding):
        trained.zero_grad(set_to_none=True)
        outputs = trained(**single, **extra, labels=single["input_ids"])
        outputs.loss.backward()
        results.append((outputs, {name: parameter.grad for name, parameter in trained.named_parameters()}))
    (plain, gradients), (padded, padded_gradients) = results
    assert torch.equal(padded.loss, plain.loss)
    for kind, padding_kind in (("image_hidden_states", "image_mask"), ("video_hidden_states", "video_mask")):
        assert padding_kind not in padding or padded[kind].shape == (0, 32)
    for name, gradient in padded_gradients.items():
        assert gradient is not None, name
        wanted = torch.zeros_like(gradient) if gradients[name] is None else gradients[name]
        torch.testing.assert_close(gradient, wanted, atol=1e-7, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_padding_media_between_others_do_not_change_the_logits(model, batch):
    wanted = model(**batch)
    images, videos = batch.pop("pixel_values"), batch.pop("pixel_values_videos")
    ours = model(
        **batch,
        pixel_values=torch.cat((images[:1], torch.full_like(images[:1], 9.0), images[1:])),
        image_mask=torch.tensor([True, False, True, True]),
        pixel_values_videos=torch.cat((torch.full_like(videos, 9.0), videos)),
        video_mask=torch.tensor([False, True]),
    )
    torch.testing.assert_close(ours.logits, wanted.logits)
    torch.testing.assert_close(ours.image_hidden_states, wanted.image_hidden_states)


def test_forward_media_masks_of_wrong_size_raises(model, batch):
    with pytest.raises(ValueError, match=r"image_mask must have one entry per image, \(3,\), got \(2,\)"):
        model(**batch, image_mask=torch.ones(2, dtype=torch.bool))
    del batch["pixel_values_videos"]
    with pytest.raises(ValueError, match="video_mask is given without videos"):
        model(**batch, video_mask=torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_low_precision_is_finite_and_near_float32(model, batch, dtype):
    wanted, low = logits_of(model, batch), copy.deepcopy(model).to(dtype)
    ours = logits_of(low, batch)
    assert ours.dtype is dtype and ours.isfinite().all()
    assert (ours.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean()
    low.train()(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in low.parameters())


def test_deepcopy_with_changed_head_changes_positions_of_the_copy_only(model):
    pixels, changed = random_images(1), copy.deepcopy(model)
    with torch.no_grad():
        wanted = model.get_image_features(pixels).pooler_output
        changed.lm_head.weight += 1
        ours = changed.get_image_features(pixels).pooler_output
        assert torch.equal(model.get_image_features(pixels).pooler_output, wanted)
    torch.testing.assert_close(ours, wanted + 1.5)  # half of one for each axis


def test_pickle_round_trip_gives_equal_logits(batch):
    model, buffer = tiny_model(), io.BytesIO()  # a new model: recording hidden states adds a hook that cannot be pickled
    torch.save(model, buffer)
    buffer.seek(0)
    for again in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert torch.equal(logits_of(again, batch), logits_of(model, batch))


@pytest.mark.parametrize(
    "device_map",
    ["auto", "cpu", {"model": "cpu", "lm_head": "disk"}, {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu",
     "model.packer": "disk", "model.language_model": "disk", "lm_head": "disk"}],
    ids=str,
)  # fmt: skip
def test_offloaded_weights_give_equal_logits(model, batch, tmp_path, device_map):
    model.save_pretrained(tmp_path)
    offloaded = LlavaSTForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map, offload_folder=tmp_path / "offload")
    torch.testing.assert_close(logits_of(offloaded, batch), logits_of(model, batch))


def test_resize_token_embeddings_larger_keeps_coordinate_tokens_and_logits(model, batch, tmp_path):
    grown, wanted = copy.deepcopy(model), logits_of(model, batch)
    size, start = wanted.shape[-1], model.config.coordinate_start_token_id
    grown.resize_token_embeddings(size + 9, mean_resizing=False)
    torch.testing.assert_close(logits_of(grown, batch)[:, :size], wanted)
    grown.save_pretrained(tmp_path)
    again = LlavaSTForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.coordinate_start_token_id == start and again.config.text_config.vocab_size == size + 9
    torch.testing.assert_close(logits_of(again, batch)[:, :size], wanted)


def test_resize_token_embeddings_without_coordinate_tokens_raises(model):
    with pytest.raises(ValueError, match=r"coordinate tokens 113…128 lie outside the vocabulary of 120"):
        copy.deepcopy(model).resize_token_embeddings(120)


@pytest.mark.parametrize("tied", [False, True])
def test_new_model_coordinate_embeddings_have_larger_std_than_others(tied):
    torch.manual_seed(0)
    options = {"num_temporal_bins": 100, "num_spatial_bins": 100, "tie_word_embeddings": tied}
    fresh, rows, bound = LlavaSTForConditionalGeneration(tiny_config(**options)), slice(113, 413), 32**-0.5
    inputs, outputs = fresh.get_input_embeddings().weight, fresh.lm_head.weight
    assert inputs[:113].std() < 0.05 and outputs[:113].std() < 0.05
    assert 0.9 * bound < outputs[rows].abs().max() <= bound
    assert outputs[rows].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    if not tied:
        assert inputs[rows].std().item() == pytest.approx(1, rel=0.05)


def test_new_model_packers_are_initialized_as_in_the_original_code():
    torch.manual_seed(0)
    packer = LlavaSTForConditionalGeneration(tiny_config(packer_hidden_size=64)).model.packer.slow
    for projection in (packer.q_proj, packer.k_proj, packer.v_proj):
        bound = (6 / (64 + 3 * 64)) ** 0.5  # Xavier, of the fused in-projection
        assert 0.95 * bound < projection.weight.abs().max() <= bound and not projection.bias.any()
    for linear in (packer.out_proj, packer.output_proj, packer.query_mlp.linear_1, packer.value_mlp.linear_2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(packer.key_norm.weight, torch.ones(64))


def test_from_pretrained_missing_weights_are_initialized_and_others_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in state.items() if ".packer." not in key and key != "lm_head.weight"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    again, info = LlavaSTForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(state) - set(kept)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in kept.items())
    assert 0.9 * 32**-0.5 < again.lm_head.weight[113:129].abs().max() <= 32**-0.5
    assert again.model.packer.fast.q_proj.weight.abs().max() > 0.2 and again.model.packer.fast.out_proj.weight.std() < 0.03


peft = pytest.importorskip("peft")


def test_lora_on_all_linear_layers_trains_and_merges(model, batch):
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).train()
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    wanted = logits_of(adapted.eval(), batch)
    torch.testing.assert_close(logits_of(adapted.merge_and_unload(), batch), wanted, atol=1e-4, rtol=1e-4)


def test_trainable_token_indices_train_coordinate_embeddings_of_input_and_output(model, batch):
    ids = list(range(model.config.coordinate_start_token_id, model.config.coordinates.end_token_id))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": ids, "lm_head": ids})
    adapted = peft.get_peft_model(copy.deepcopy(model), config).train()
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    full = copy.deepcopy(model).train()
    full(**batch, labels=batch["input_ids"]).loss.backward()
    deltas = {name: p.grad for name, p in adapted.named_parameters() if "trainable_tokens" in name}
    assert len(deltas) == 2
    for name, gradient in deltas.items():
        matrix = full.lm_head if "lm_head" in name else full.get_input_embeddings()
        torch.testing.assert_close(gradient, matrix.weight.grad[ids], atol=1e-6, rtol=1e-4)
    torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1).step()
    wanted = logits_of(adapted.eval(), batch)
    assert not torch.allclose(wanted, logits_of(model, batch), atol=1e-3)
    torch.testing.assert_close(logits_of(adapted.merge_and_unload(), batch), wanted, atol=1e-4, rtol=1e-4)


def test_trainer_reports_evaluation_loss_and_only_logits_as_predictions(tmp_path):
    rows = [{"input_ids": torch.arange(1, 7), "labels": torch.tensor([-100, -100, -100, 4, 5 + i, 6])} for i in range(3)]
    arguments = TrainingArguments(str(tmp_path), report_to=[], per_device_eval_batch_size=2, use_cpu=True)
    trainer = Trainer(tiny_model(), arguments, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(rows).predictions.shape[:2] == (3, 6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("pixel_values", (3, 18, 18)), ("pixel_values", (1, 3, 20, 18)), ("pixel_values_videos", (4, 3, 18, 18))],
)
def test_forward_pixels_of_wrong_shape_raises_with_the_expected_shape(name, shape):
    with pytest.raises(ValueError, match=rf"{name} has shape .*3, 18, 18"):
        tiny_model()(input_ids=torch.tensor([[1, 2]]), **{name: torch.zeros(shape)})


def test_disable_fast_stream_one_frame_video_has_the_same_number_of_tokens():
    models = (tiny_model(disable_fast_stream=drop) for drop in (False, True))
    with_fast, without = (model.get_video_features(random_videos(1, 1)).pooler_output for model in models)
    assert with_fast.shape == without.shape


def test_forward_coordinate_values_of_wrong_length_raises():
    with pytest.raises(ValueError, match=r"must have one shape, got \(1, 3\) and \(1, 2\)"):
        tiny_model()(input_ids=torch.tensor([[1, 2]]), coordinate_values=torch.full((1, 3), float("nan")))


@torch.no_grad()
def test_forward_coordinates_is_accepted_as_coordinate_values_with_a_warning(model, batch):
    wanted = model(**batch).logits
    values = batch.pop("coordinate_values")
    with pytest.warns(FutureWarning, match="coordinates is now coordinate_values"):
        assert torch.equal(model(**batch, coordinates=values).logits, wanted)
    with pytest.warns(FutureWarning, match="coordinates is now coordinate_values"):
        base = model.model(**batch, coordinates=values, coordinate_output_embeddings=model.get_coordinate_output_embeddings())
    torch.testing.assert_close(model.lm_head(base.last_hidden_state), wanted)
    with pytest.raises(ValueError, match="coordinate_values is given twice"):
        model(**batch, coordinate_values=values, coordinates=values)


@pytest.mark.parametrize(
    ("dtype", "frozen", "expected"), [(torch.bfloat16, True, False), (torch.bfloat16, False, True), (torch.float32, True, True)]
)
def test_vision_tower_frozen_in_the_type_of_autocast_runs_without_it(dtype, frozen, expected):
    model = tiny_model()
    model.model.vision_tower.to(dtype).requires_grad_(not frozen)
    model.model.multi_modal_projector.to(dtype)
    states = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, inputs: states.append(torch.is_autocast_enabled("cpu")))
    pixels = random_images(2)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.model._patch_features(pixels)[1]
    assert states == [expected]
    with torch.no_grad():
        plain = model.float().model._patch_features(pixels)[1]
    torch.testing.assert_close(features.float(), plain, rtol=0.1, atol=0.1 * float(plain.abs().max()))
