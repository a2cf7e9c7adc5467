# SPDX-License-Identifier: Apache-2.0
"""Constrained answers of a model with random weights, by `generate` in its modes and by the pipeline."""

import numpy as np
import pytest
import torch

from llava_st_hf.model import grammar_logits_llava_st
from llava_st_hf.model.grammar_logits_llava_st import GrammarLogitsProcessor
from modeling_tests.media import moving_frames


FRAMES = {"video": moving_frames(10, 48, 64), "fps": 10}
PICTURE = {"image": moving_frames(1, 48, 64)[0]}
QUESTIONS = [
    {**FRAMES, "task": "stvg", "text": "falls"},
    {**FRAMES, "task": "svg", "text": "falls", "span": (0.2, 0.65)},
    {**PICTURE, "task": "rec", "text": "cat"},
    {**FRAMES, "task": "elc", "time": 0.45, "box": [1, 2, 30, 40]},
    {**PICTURE, "task": "dgc"},
    {**FRAMES, "task": "tvg", "text": "falls"},
    {**PICTURE, "task": "reg", "box": [1, 2, 30, 40]},
    {**FRAMES, "task": "tr", "span": (0.2, 0.65)},
    {**FRAMES, "text": "When?"},
    {**PICTURE, "text": "Where?"},
    [{"role": "user", "content": [{"type": "video", **FRAMES}, {"type": "image", **PICTURE}, {"type": "text", "text": "Where?"}]}],
]
LIMIT = 24


@pytest.fixture(scope="module")
def prepared(grounder):
    return grounder._collate([grounder.preprocess(question) for question in QUESTIONS])


@pytest.fixture(scope="module")
def constraint(grounder, prepared):
    return grounder._constraint(prepared["contexts"], "auto")


def generate(grounder, prepared, **options):
    options = {"max_new_tokens": LIMIT, "do_sample": False, **options}
    outputs = grounder.model.generate(**prepared["model_inputs"], **options)
    return outputs[:, prepared["model_inputs"]["input_ids"].shape[1] :]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 5.0},
        {"do_sample": True, "top_k": 3, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "do_sample": True},
        {"repetition_penalty": 1.5, "max_new_tokens": 13},
        {"speculative": True},
        {"speculative": True, "do_sample": True, "temperature": 5.0},
    ],
    ids=str,
)
def test_generate_with_grammar_gives_answers_without_notes(grounder, prepared, constraint, options):
    torch.manual_seed(0)
    answers = generate(grounder, prepared, grammar=constraint, **options)
    assert constraint.off_grammar(answers) == []
    end = grounder.processor.tokenizer.eos_token_id
    assert answers.shape[1] <= options.get("max_new_tokens", LIMIT) and (answers == end).any(dim=1).all()
    copies = options.get("num_return_sequences", 1)
    contexts = [context for context in prepared["contexts"] for _ in range(copies)]
    for ids, context in zip(answers, contexts, strict=True):
        assert grounder._answer(ids, False, context, True, None, {})["notes"] == []


def test_logits_processor_by_itself_gives_the_answers_of_the_argument(grounder, prepared, constraint):
    length = prepared["model_inputs"]["input_ids"].shape[1]
    by_itself = generate(grounder, prepared, logits_processor=[GrammarLogitsProcessor(constraint, length, LIMIT)])
    assert torch.equal(by_itself, generate(grounder, prepared, grammar=constraint))


def test_generate_with_grammar_and_drafts_gives_the_answers_without_drafts(grounder, prepared, constraint):
    templates = [grounder.processor.draft_template(context.task) for context in prepared["contexts"]]
    drafted = generate(grounder, prepared, grammar=constraint, speculative=True, draft_templates=templates, max_new_tokens=60)
    assert torch.equal(drafted, generate(grounder, prepared, grammar=constraint, max_new_tokens=60))


def test_logits_processor_after_a_change_of_beams_equals_a_new_one(grounder):
    constraint = grounder.processor.answer_constraint(["rec", "stvg", "tvg"], ["image", "video", "video"])
    generator, vocabulary = torch.Generator().manual_seed(0), len(grounder.processor.tokenizer)
    beams = GrammarLogitsProcessor(constraint, 2, 30)
    ids, changed = torch.zeros(12, 2, dtype=torch.long), 0
    for _ in range(25):
        scores = torch.randn(12, vocabulary, generator=generator)
        processed = beams(ids, scores)
        assert torch.equal(processed, GrammarLogitsProcessor(constraint, 2, 30)(ids, scores))
        # Each row continues a row of its prompt, four rows a prompt, or the same row as another.
        parents = torch.randint(4, (12,), generator=generator) + torch.arange(12) // 4 * 4
        changed += not torch.equal(ids[parents], ids)
        ids = torch.cat((ids[parents], processed[parents].softmax(-1).multinomial(1, generator=generator)), dim=1)
    assert changed > 10


def test_logits_processor_other_number_of_rows_raises(grounder, constraint):
    processor = GrammarLogitsProcessor(constraint, 0, LIMIT)
    with pytest.raises(ValueError, match="for 11 prompts, but there are 12"):
        processor(torch.zeros(12, 0, dtype=torch.long), torch.zeros(12, 900))


def test_generate_uses_all_end_tokens_of_the_generation_config(grounder, prepared, constraint):
    ends = [grounder.processor.tokenizer.eos_token_id, grounder.processor.tokenizer.pad_token_id]
    preferred = torch.zeros(grounder.model.config.text_config.vocab_size)
    preferred[ends[1]] = 100

    def prefer(input_ids, scores):
        return scores + preferred

    answers = generate(grounder, prepared, grammar=constraint, eos_token_id=ends, logits_processor=[prefer])
    assert not (answers == ends[0]).any() and (answers == ends[1]).any(dim=1).all()
    assert constraint.bound_to(len(preferred), ends, "cpu").off_grammar(answers) == []


def test_generate_limit_too_small_for_an_answer_raises(grounder, prepared, constraint):
    shortest = constraint.grammar.shortest("stvg")
    with pytest.raises(ValueError, match=f"max_new_tokens={shortest - 1} is too small for the grammar 'stvg'.*has {shortest} tokens"):
        generate(grounder, prepared, grammar=constraint, max_new_tokens=shortest - 1)


def test_generate_other_number_of_prompts_raises(grounder, prepared):
    constraint = grounder.processor.answer_constraint(["tvg"], ["video"])
    with pytest.raises(ValueError, match="for 1 prompts, but there are 11"):
        generate(grounder, prepared, grammar=constraint)


def test_generate_without_end_token_raises(grounder, prepared, constraint, monkeypatch):
    for settings in (grounder.model.generation_config, grounder.model.config.text_config):
        monkeypatch.setattr(settings, "eos_token_id", None)
    with pytest.raises(ValueError, match="needs an end token"):
        generate(grounder, prepared, grammar=constraint)


def test_generate_settings_that_forbid_what_the_grammar_allows_log_a_warning(grounder, prepared, constraint, monkeypatch):
    warnings = []
    monkeypatch.setattr(grammar_logits_llava_st.logger, "warning", warnings.append)
    generate(grounder, prepared, grammar=constraint)
    assert warnings == []
    bracket = grounder.processor.tokenizer.convert_tokens_to_ids("[")
    generate(grounder, prepared, grammar=constraint, bad_words_ids=[[bracket]], max_new_tokens=13)
    assert len(warnings) == 1 and "Answers 0, 1, 2, 3, 4" in warnings[0] and "bad_words_ids" in warnings[0]


# Pipeline


def test_pipeline_with_grammar_gives_answers_without_notes(grounder):
    answers = grounder(QUESTIONS, batch_size=len(QUESTIONS), grammar="auto", max_new_tokens=LIMIT)
    assert all(answer["notes"] == [] for answer in answers)
    for answer in answers[:8]:
        assert answer["events"]
    assert all(answer["notes"] for answer in grounder(QUESTIONS[:6], batch_size=6, max_new_tokens=LIMIT))


def test_pipeline_with_the_grammar_of_a_task_gives_its_form_for_free_text(grounder):
    (answer,) = grounder([{**FRAMES, "text": "When?"}], grammar="stvg", max_new_tokens=LIMIT)
    (event,) = [event for event in answer["events"] if event["boxes"]]
    assert event["start"] <= event["boxes"][0]["time"] <= event["end"] and answer["notes"] == []


def test_pipeline_question_without_media_has_no_grammar(grounder):
    chat = [{"role": "user", "content": [{"type": "text", "text": "What is a span?"}]}]
    plain = grounder([chat], max_new_tokens=8)
    assert grounder([chat], max_new_tokens=8, grammar="auto") == plain


@pytest.mark.parametrize(
    "question, grammar, message",
    [
        ({**PICTURE, "text": "Where?"}, "vqa", "grammar='vqa' must be 'auto', None or a task: rec"),
        ({**PICTURE, "text": "Where?"}, True, "grammar=True must be"),
        ({**PICTURE, "text": "Where?"}, "tvg", "The grammar 'tvg' is for answers about videos, but the question has an image"),
    ],
)
def test_pipeline_invalid_grammar_raises(grounder, question, grammar, message):
    with pytest.raises(ValueError, match=message):
        grounder(question, grammar=grammar, max_new_tokens=LIMIT)


def test_pipeline_frames_without_rate_have_only_notes_about_the_file(grounder):
    (answer,) = grounder([{"video": list(FRAMES["video"]), "task": "tvg", "text": "falls"}], grammar="auto", max_new_tokens=LIMIT)
    assert np.all(["frame" in note for note in answer["notes"]])
