# SPDX-License-Identifier: Apache-2.0
"""`generate` in all its modes equals full forward passes."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers.generation import utils as generation_utils

from llava_st_hf.model.cache_name_llava_st import CACHE_NAME, CACHE_NAMES
from modeling_tests.factories import NAN, mixed_batch, single_prompts, tiny_model, watch_new_tensors


CHUNKS_MEDIA = hasattr(generation_utils, "_slice_mm_encoder_output")  # newer than transformers 5.20
NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def greedy(model):
    return model.generate(**mixed_batch(model.config), **GREEDY, output_logits=True, return_dict_in_generate=True)


@torch.no_grad()
def test_generate_greedy_equals_full_forward_passes(model, batch, greedy):
    ids, mask, positions = (batch.pop(key) for key in ("input_ids", "attention_mask", "coordinate_values"))
    for step in range(NEW):
        logits = model(input_ids=ids, attention_mask=mask, coordinate_values=positions, **batch).logits[:, -1]
        torch.testing.assert_close(greedy.logits[step], logits, atol=2e-5, rtol=1e-4)
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
        mask, positions = F.pad(mask, (0, 1), value=1), F.pad(positions, (0, 1), value=NAN)
    assert torch.equal(ids, greedy.sequences)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
        {"prefill_chunk_size": 7},
        {"prefill_chunk_size": 1000},
    ],
    ids=str,
)
def test_generate_other_modes_equal_greedy_decoding(model, batch, greedy, options):
    if "prefill_chunk_size" in options and not CHUNKS_MEDIA:
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            model.generate(**batch, **GREEDY, **options)
        return
    sequences = model.generate(**batch, **{**GREEDY, **options})
    assert torch.equal(sequences, greedy.sequences.repeat_interleave(options.get("num_return_sequences", 1), dim=0))


def test_generate_batch_equals_single_prompts(model, greedy):
    for row, single in enumerate(single_prompts(model.config)):
        assert torch.equal(model.generate(**single, **GREEDY)[0, -NEW:], greedy.sequences[row, -NEW:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_beam_search_in_a_batch_equals_single_prompts(model, batch, use_cache):
    patches = [model.config.image_token_id, model.config.video_token_id]  # would be counted as media tokens in a forward pass without cache
    beams = {**GREEDY, "num_beams": 3, "use_cache": use_cache, "suppress_tokens": patches}
    together = model.generate(**batch, **beams)
    for row, single in enumerate(single_prompts(model.config)):
        assert torch.equal(model.generate(**single, **beams)[0, -NEW:], together[row, -NEW:])


@pytest.mark.parametrize("row", range(4))
def test_generate_assisted_decoding_equals_greedy_decoding(model, greedy, row):
    single = single_prompts(model.config)[row]
    assistant = tiny_model()
    with torch.no_grad():
        for parameter in assistant.model.language_model.layers.parameters():
            parameter.mul_(1.1)
    for helper in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant}):
        assert torch.equal(model.generate(**single, **GREEDY, **helper)[0, -NEW:], greedy.sequences[row, -NEW:])


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generate_from_inputs_embeds_equals_input_ids(model, batch, num_beams):
    wanted = model.generate(**batch, **GREEDY, num_beams=num_beams)[:, -NEW:]
    embeds = model.model.embed_inputs(batch.pop("input_ids"), batch.pop("coordinate_values"))[0].detach()
    assert torch.equal(model.generate(inputs_embeds=embeds, **batch, **GREEDY, num_beams=num_beams)[:, -NEW:], wanted)


@pytest.mark.parametrize("given", ["whole", "new tokens", "new tokens, whole coordinates"])
def test_generate_second_turn_with_a_cache_equals_a_run_without_cache(model, batch, greedy, given):
    config, rows = model.config, len(batch["input_ids"])
    turn = torch.tensor([[5, config.coordinate_start_token_id + 2, config.width_input_token_id, 6]]).expand(rows, -1)
    turn_positions = torch.tensor([[NAN, 0.3, 0.77, NAN]]).expand(rows, -1)
    batch["input_ids"] = torch.cat((greedy.sequences, turn), dim=1)
    batch["attention_mask"] = F.pad(batch["attention_mask"], (0, NEW + 4), value=1)
    batch["coordinate_values"] = torch.cat((F.pad(batch["coordinate_values"], (0, NEW), value=NAN), turn_positions), dim=1)
    wanted = model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True)
    del batch["pixel_values"], batch["pixel_values_videos"]
    if given != "whole":
        batch["input_ids"] = batch["input_ids"][:, -5:]  # the cache holds all but the last generated token
    if given == "new tokens":
        batch["coordinate_values"] = batch["coordinate_values"][:, -5:]
    cache = copy.deepcopy(greedy[CACHE_NAME])
    ours = model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True, **{CACHE_NAME: cache})
    torch.testing.assert_close(ours.logits[0], wanted.logits[0], atol=2e-5, rtol=1e-4)
    assert torch.equal(ours.sequences[:, -NEW:], wanted.sequences[:, -NEW:])


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_forward_takes_the_cache_under_both_names(model, batch, name):
    """A decoder ignores the name of another version without an error."""
    step = {"input_ids": batch["input_ids"][:, -1:], "attention_mask": F.pad(batch["attention_mask"], (0, 1), value=1)}
    for part in (model, model.model):
        cache = model(**batch)[CACHE_NAME]
        part(**step, use_cache=True, **{name: cache})
        assert cache.get_seq_length() == batch["input_ids"].shape[1] + 1


@torch.no_grad()
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_cache_given_under_both_names_raises(model, batch, greedy, call):
    with pytest.raises(ValueError, match="given twice, as cache and as past_key_values"):
        getattr(model, call)(input_ids=batch["input_ids"][:, -1:], cache=greedy[CACHE_NAME], past_key_values=greedy[CACHE_NAME])


def test_generate_old_argument_coordinates_gives_a_warning_and_equal_results(model, batch, greedy):
    values = batch.pop("coordinate_values")
    with pytest.warns(FutureWarning, match="coordinates is now coordinate_values"):
        assert torch.equal(model.generate(**batch, coordinates=values, **GREEDY), greedy.sequences)


@pytest.mark.parametrize("chunk_size", [1, 1000])
def test_generate_vision_chunk_size_sets_the_frames_per_encoder_call(model, batch, greedy, chunk_size):
    sizes = []
    hook = model.model.vision_tower.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    sequences = model.generate(**batch, **GREEDY, vision_chunk_size=chunk_size)
    hook.remove()
    assert sizes == ([1] * 7 if chunk_size == 1 else [3, 4])
    assert torch.equal(sequences, greedy.sequences)


def test_generate_coordinate_values_change_the_prefill_and_are_absent_in_decode_steps(model, batch, greedy):
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs.get("coordinate_values")), with_kwargs=True)
    model.generate(**batch, **GREEDY)
    hook.remove()
    assert torch.equal(seen[0].isnan(), batch["coordinate_values"].isnan()) and all(positions is None for positions in seen[1:])
    del batch["coordinate_values"]
    at_bins = model.generate(**batch, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert not torch.allclose(at_bins.logits[0], greedy.logits[0], atol=1e-4)


def test_generate_stray_media_markers_are_ordinary_tokens(model, batch):
    config = model.config
    stray = [config.image_start_token_id, config.video_end_token_id, config.slow_video_start_token_id, config.image_end_token_id]
    batch["input_ids"] = F.pad(batch["input_ids"], (0, 4))
    batch["input_ids"][:, -4:] = torch.tensor(stray)
    batch["attention_mask"] = F.pad(batch["attention_mask"], (0, 4), value=1)
    batch["coordinate_values"] = F.pad(batch["coordinate_values"], (0, 4), value=NAN)
    cached, whole = (model.generate(**batch, **GREEDY, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached, whole)


@torch.no_grad()
def test_decode_step_allocates_the_same_tensors_as_qwen2(model, batch):
    """Only the language model and its head run: no copy of a vocabulary-sized matrix is made."""
    step = {"input_ids": torch.full((4, 1), 7), "attention_mask": F.pad(batch["attention_mask"], (0, 1), value=1)}
    calls = []
    for decode in (
        lambda cache: model(**step, use_cache=True, **{CACHE_NAME: cache}).logits,
        lambda cache: model.lm_head(model.model.language_model(**step, use_cache=True, **{CACHE_NAME: cache}).last_hidden_state),
    ):
        cache = model(**batch)[CACHE_NAME]
        with watch_new_tensors() as made:
            decode(cache)
        calls.append(list(made))
    ours, qwen2 = calls
    assert ours == qwen2
    vocabulary = model.config.text_config.vocab_size
    assert [shape for _, shape in ours if vocabulary in shape[:-1]] == []
    assert len([shape for _, shape in ours if shape[-1:] == (vocabulary,)]) == 1  # the logits


@torch.no_grad()
def test_prefill_copies_no_vocabulary_sized_matrix(model, batch):
    with watch_new_tensors() as made:
        model(**batch, logits_to_keep=1)
    vocabulary, hidden = model.config.text_config.vocab_size, model.config.text_config.hidden_size
    assert made and (vocabulary, hidden) not in {shape for _, shape in made}
