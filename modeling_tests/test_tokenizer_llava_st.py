# SPDX-License-Identifier: Apache-2.0
"""Coordinate tokens as ordinary added tokens: tokenization is that of special tokens, and ordinary decoding keeps them."""

import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer, Qwen2Config, Qwen2Tokenizer, TextStreamer

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTProcessor
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.model.coordinates_llava_st import COORDINATE_TOKEN, coordinate_tokens
from llava_st_hf.model.tokenizer_llava_st import add_coordinate_tokens_to_tokenizer, make_coordinate_tokens_ordinary
from modeling_tests.processors import tiny_processor
from modeling_tests.reference import ORIGINAL_CHECKPOINT


COORDINATES = coordinate_tokens(100, 100)
# Pieces that a tokenizer could join to coordinate tokens, or cut them at: blanks, letters in NFC and NFD, parts of tokens, control tokens.
PIECES = [
    *COORDINATES, *SPECIAL_TOKENS.values(), "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<TEMP-", "<TEMP-1", "<TEMP-100>", "<WIDTH",
    "-042>", "<", ">", "<<", ">>", "[", "]", "{", "}", ":", ",", ".", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200d", "狗在", "，",
    "时间", "é", "e\u0301", "\u0301", "🙂", "a", "The dog", " runs", "0", "12", "During {", "}. Object bounding box: ", ":[", "].",
    "<t0.5>", "<temp-001>", "\ufffd", "\0",
]  # fmt: skip


def original_tokenizer():
    return AutoTokenizer.from_pretrained(ORIGINAL_CHECKPOINT, config=Qwen2Config())


def marks(tokenizer) -> set[tuple]:
    """Options of the coordinate tokens: normalized, special, lstrip, rstrip, single_word."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if COORDINATE_TOKEN.fullmatch(token.content)]
    assert len(added) == 300
    return {(token.normalized, token.special, token.lstrip, token.rstrip, token.single_word) for token in added}


ORDINARY = {(False, False, False, False, False)}


@pytest.fixture(scope="module")
def tokenizers():
    """Tokenizers of the released layout, with special and with ordinary coordinate tokens."""
    special, ordinary = original_tokenizer(), original_tokenizer()
    make_coordinate_tokens_ordinary(ordinary)
    assert marks(special) == {(False, True, False, False, False)} and marks(ordinary) == ORDINARY
    return special, ordinary


def test_make_coordinate_tokens_ordinary_keeps_vocabulary_and_tokenization(tokenizers):
    special, ordinary = tokenizers
    assert ordinary.get_vocab() == special.get_vocab()
    chooser = random.Random(0)
    texts = ["".join(chooser.choices(PIECES, k=chooser.randint(1, 12))) for _ in range(5000)]
    texts += [
        f"{before}{token}{after}" for token in COORDINATES for before, after in (("", ""), (" ", " "), ("a", "b"), ("狗", "狗"), ("<", ">"))
    ]
    expected = special(texts)["input_ids"]
    assert ordinary(texts)["input_ids"] == expected
    assert ordinary.batch_decode(expected) == special.batch_decode(expected)


@settings(deadline=None)
@given(text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=8).map("".join))
def test_make_coordinate_tokens_ordinary_any_text_gives_equal_ids(tokenizers, text):
    special, ordinary = tokenizers
    assert ordinary(text)["input_ids"] == special(text)["input_ids"]


def test_ordinary_decoding_and_streamers_keep_coordinates_and_drop_control_tokens(tokenizers, capsys):
    special, ordinary = tokenizers
    text = "During {<TEMP-012><TEMP-099>}. [<WIDTH-001><HEIGHT-002><WIDTH-003><HEIGHT-004>]"
    ids = ordinary(f"{text}<|im_end|><|endoftext|>")["input_ids"]
    assert ordinary.batch_decode([ids], skip_special_tokens=True) == [text]
    assert special.batch_decode([ids], skip_special_tokens=True) == ["During {}. []"]
    streamer = TextStreamer(ordinary, skip_special_tokens=True)
    for token_id in ids:
        streamer.put(torch.tensor([token_id]))
    streamer.end()
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize("listed", [False, True])
def test_processor_of_an_original_checkpoint_saves_ordinary_coordinate_tokens(tmp_path, listed):
    if listed:  # as tokenizers are saved whose tokens were given as additional_special_tokens
        folder = tmp_path / "original"
        tokenizer = original_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *COORDINATES]})
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_bytes((ORIGINAL_CHECKPOINT / "config.json").read_bytes())
    else:
        folder = ORIGINAL_CHECKPOINT
    processor = LlavaSTProcessor.from_pretrained(folder)
    assert marks(processor.tokenizer) == ORDINARY
    processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    assert not [token for token in saved["added_tokens"] if COORDINATE_TOKEN.fullmatch(token["content"]) and token["special"]]
    for reloaded in (AutoTokenizer.from_pretrained(tmp_path / "saved"), LlavaSTProcessor.from_pretrained(tmp_path / "saved").tokenizer):
        assert marks(reloaded) == ORDINARY and not {*COORDINATES} & {*reloaded.all_special_tokens}
        assert reloaded.get_vocab() == original_tokenizer().get_vocab()
        assert {"<|im_start|>", "<|im_end|>"} <= {*reloaded.all_special_tokens}


def test_bundled_tokenizer_has_ordinary_coordinate_tokens_in_its_file():
    assert marks(AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)) == ORDINARY


def test_processor_keeps_options_of_the_tokenizer_that_its_description_lacks():
    tokenizer = original_tokenizer()
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    assert tiny_processor(tokenizer=tokenizer).tokenizer.backend_tokenizer.encode_special_tokens


def test_add_coordinate_tokens_to_tokenizer_adds_ordinary_tokens():
    tokenizer = Qwen2Tokenizer()
    size = len(tokenizer)
    add_coordinate_tokens_to_tokenizer(tokenizer, 100, 100)
    assert marks(tokenizer) == ORDINARY and tokenizer.convert_tokens_to_ids(COORDINATES) == list(range(size, size + 300))


def test_make_coordinate_tokens_ordinary_normalized_tokens_become_raw():
    tokenizer = Qwen2Tokenizer()
    tokenizer.add_tokens([AddedToken(token, normalized=True, special=False) for token in COORDINATES])
    make_coordinate_tokens_ordinary(tokenizer)
    assert marks(tokenizer) == ORDINARY


def test_make_coordinate_tokens_ordinary_python_tokenizer_raises():
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(COORDINATES, special_tokens=True)
    with pytest.raises(ValueError, match=r"ByT5Tokenizer are special. Use a tokenizer that has a tokenizer.json"):
        make_coordinate_tokens_ordinary(tokenizer)
