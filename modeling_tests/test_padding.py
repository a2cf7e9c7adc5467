# SPDX-License-Identifier: Apache-2.0
"""Padding of the vocabulary at conversion: sizes, and that no program generates the added ids."""

import json
from pathlib import Path

import pytest
import torch

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.checkpoints.fingerprint import FINGERPRINT, read_fingerprint
from llava_st_hf.checkpoints.padding import pad_vocabulary
from llava_st_hf.cli import main
from modeling_tests.processors import model_for, tiny_processor, tiny_tokenizer
from modeling_tests.reference import ORIGINAL_CHECKPOINT, REFERENCE


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def prompt(processor, rows: int = 1) -> torch.Tensor:
    return processor.tokenizer(["When does it happen?"] * rows, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("tied", [False, True])
def test_pad_vocabulary_adds_rows_to_a_multiple_of_64_and_changes_no_logit(processor, tied):
    model, ids = model_for(processor, tie_word_embeddings=tied), prompt(processor)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        pad_vocabulary(model, processor.tokenizer)
        after = model(input_ids=ids).logits
    count = len(processor.tokenizer)
    assert after.shape[-1] % 64 == 0 and after.shape[-1] > count == before.shape[-1]
    torch.testing.assert_close(after[..., :count], before, atol=1e-6, rtol=1e-6)
    assert model.generation_config.suppress_tokens == list(range(count, after.shape[-1]))
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr() or not tied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_rows_never_have_the_highest_logit(processor, dtype):
    model, count = model_for(processor), len(processor.tokenizer)
    with torch.no_grad():
        model.lm_head.weight.sub_(3)  # logits of hidden states that are positive are all negative, below those of rows of zeros
    model.to(dtype)
    pad_vocabulary(model, processor.tokenizer)
    hidden = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    hidden = torch.cat((hidden, hidden.abs())).to(dtype)
    with torch.no_grad():
        logits = model.lm_head(hidden).float()
    assert (logits[500:, :count] < 0).all()
    assert (logits[:, count:].amax(1) < logits[:, :count].amax(1)).all()


def test_padding_ids_are_not_sampled_at_a_high_temperature(processor):
    model = model_for(processor)
    pad_vocabulary(model, processor.tokenizer)
    count = len(processor.tokenizer)
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 1e6, "top_k": 0, "max_new_tokens": 40, "eos_token_id": None}
    ids = model.generate(prompt(processor, 8), **options)
    assert ids.max() < count
    ids = model.generate(prompt(processor, 16), **options, suppress_tokens=[0])  # as without it
    assert ids.max() >= count


def test_pad_vocabulary_again_after_new_tokens_frees_their_ids(processor):
    tokenizer = tiny_tokenizer()
    model, count = model_for(processor), len(tokenizer)
    model.generation_config.suppress_tokens = [7]
    pad_vocabulary(model, tokenizer)
    first = model.config.text_config.vocab_size
    tokenizer.add_tokens(["<mine>"])
    pad_vocabulary(model, tokenizer)
    assert model.config.text_config.vocab_size == first
    assert model.generation_config.suppress_tokens == [7, *range(count + 1, first)]


def test_pad_vocabulary_of_a_full_multiple_adds_a_spare_row(processor):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<more-{i}>" for i in range(-len(tokenizer) % 64)])
    model = model_for(processor)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    pad_vocabulary(model, tokenizer)
    assert model.config.text_config.vocab_size == len(tokenizer) + 64


def test_pad_vocabulary_leaves_a_stage_1_model_and_refuses_a_tokenizer_with_more_tokens(processor):
    stage1 = tiny_processor(tokenizer=tiny_tokenizer(0))
    model = model_for(stage1, use_coordinate_tokens=False)
    pad_vocabulary(model, stage1.tokenizer)
    assert model.config.text_config.vocab_size == len(stage1.tokenizer)
    model, larger = model_for(processor), tiny_tokenizer()
    larger.add_tokens(["<mine>"])
    with pytest.raises(ValueError, match="do not belong together"):
        pad_vocabulary(model, larger)


def test_demo_model_has_a_padded_vocabulary():
    config, generation = (json.loads(Path(DEMO_MODEL_PATH, name).read_text()) for name in ("config.json", "generation_config.json"))
    tokenizer = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH).tokenizer
    rows = config["text_config"]["vocab_size"]
    assert rows % 64 == 0 and rows > len(tokenizer)
    assert generation["suppress_tokens"] == list(range(len(tokenizer), rows))


def test_convert_pads_the_original_checkpoint(tmp_path):
    overrides = ["--config-overrides", str(REFERENCE / "tiny" / "config_overrides.json")]
    assert main(["convert", str(ORIGINAL_CHECKPOINT), str(tmp_path), *overrides, "--no-fingerprint"]) == 0
    assert not (tmp_path / FINGERPRINT).exists()
    model = LlavaSTForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config.text_config.vocab_size % 64 == 0
    assert model.config.coordinates.end_token_id == model.generation_config.suppress_tokens[0]


def test_convert_of_a_folder_of_this_package_adds_padding_and_a_fingerprint_to_it(tmp_path, processor):
    model_for(processor).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert main(["convert", str(tmp_path), str(tmp_path)]) == 0
    assert read_fingerprint(tmp_path).token_ids
    assert LlavaSTForConditionalGeneration.from_pretrained(tmp_path).config.text_config.vocab_size % 64 == 0
