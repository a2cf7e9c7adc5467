# SPDX-License-Identifier: Apache-2.0
"""Grammars exported to servers: xgrammar and llguidance read them, and accept the answers that Python's `re` accepts."""

import re

import llguidance
import pytest
import xgrammar
from xgrammar.testing import _is_grammar_accept_string

from llava_st_hf.model.grammar_export_llava_st import answer_ebnf, answer_regex
from llava_st_hf.model.grammar_llava_st import RULES
from modeling_tests.grammar_walks import constraint_of, random_questions, walk
from modeling_tests.processors import tiny_processor


BOX = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
TUBELET = f"Object bounding box: <TEMP-030>:{BOX}<TEMP-031>:{BOX}."
SPAN = "{<TEMP-030><TEMP-031>}"
VALID = {
    "rec": [BOX, f"It is at {BOX}."],
    "reg": ["a dog", "é 1"],
    "dgc": [f"A man {BOX} rides horses {BOX}{BOX}, and a dog {BOX}."],
    "tvg": [SPAN, f"During {SPAN}."],
    "tr": ["A dog runs."],
    "stvg": [f"During {SPAN}. {TUBELET}"],
    "svg": [TUBELET, f"During {SPAN}. {TUBELET}"],
    "elc": [f"Ends in <TEMP-033>, a child pushes. {TUBELET}", f"Ends in {SPAN}, a child pushes. {TUBELET}"],
    "auto_image": ["It is red.", f"A man {BOX} rides horses {BOX}{BOX} in a field."],
    "auto_video": ["It is red.", "It is <TEMP-033>.", BOX, f"{SPAN} A. {SPAN} B. {TUBELET}", f"Ends in <TEMP-033>, a child. {TUBELET}"],
}
INVALID = [
    "{<TEMP-030>}",
    "{<TEMP-030><TEMP-031>",
    "{<TEMP-030><TEMP-100>}",
    "[<WIDTH-010><HEIGHT-020><WIDTH-030><WIDTH-040>]",
    "[<WIDTH-010><HEIGHT-020><WIDTH-030>]",
    f"<TEMP-030>: {BOX}",
    "<TEMP-030>:red",
    "[0.1, 0.2]",
    "",
]


@pytest.mark.parametrize("rule", RULES)
def test_exported_grammar_accepts_valid_answers_only(rule):
    regex, bytes_of_tokens = answer_regex(rule, 100, 100), llguidance.LLTokenizer("byte")
    compiled = re.compile(regex)
    grammars = [xgrammar.Grammar.from_ebnf(answer_ebnf(rule, 100, 100)), xgrammar.Grammar.from_regex(regex)]
    for text in [*VALID[rule], *INVALID]:
        expected = text in VALID[rule]
        assert bool(compiled.fullmatch(text)) == expected, text
        assert [_is_grammar_accept_string(grammar, text) for grammar in grammars] == [expected] * 2, text
        matcher = llguidance.LLMatcher(bytes_of_tokens, llguidance.LLMatcher.grammar_from_regex(regex))
        ids = list(text.encode())
        assert not matcher.is_error()
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == expected, text


def test_exported_regex_accepts_random_answers_of_the_grammar():
    processor = tiny_processor(num_temporal_bins=57, num_spatial_bins=12)
    questions = random_questions(300, 0)
    constraint = constraint_of(processor, questions)
    symbols = processor.tokenizer.convert_tokens_to_ids(["{", "}", "[", "]", ":"])
    texts = [processor.tokenizer.decode(ids[:-1]) for ids in walk(constraint, [40] * 300, 0, symbols)]
    matched = 0
    for rule, text in zip(constraint.rules, texts, strict=True):
        if text.isprintable() and text.isascii():  # exported grammars have no control characters, and simpler conditions on words
            assert re.fullmatch(answer_regex(rule, 57, 12), text), (rule, text)
            matched += 1
    assert matched > 20


@pytest.mark.parametrize("num_bins", [2, 10, 57, 99, 100, 101, 250, 999, 1000])
def test_exported_regex_has_the_numbers_of_the_bins(num_bins):
    regex = answer_regex("tvg", num_bins, 100)
    numbers = [number for number in range(1000) if re.fullmatch(regex, f"{{<TEMP-{number:03d}><TEMP-000>}}")]
    assert numbers == list(range(num_bins))


def test_exported_grammar_unknown_rule_raises():
    for export in (answer_regex, answer_ebnf):
        with pytest.raises(ValueError, match="rule='vqa'"):
            export("vqa", 100, 100)
