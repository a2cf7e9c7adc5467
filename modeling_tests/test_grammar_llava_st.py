# SPDX-License-Identifier: Apache-2.0
"""Rules of answers and their tables over tokens."""

import json
import random
import re
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llava_st_hf.data.questions import question_and_answer
from llava_st_hf.data.samples import GroundingSample
from llava_st_hf.model.configuration_llava_st import SPECIAL_TOKENS
from llava_st_hf.model.coordinates_llava_st import COORDINATE_TOKEN
from llava_st_hf.model.grammar_automaton_llava_st import answer_automaton
from llava_st_hf.model.grammar_llava_st import RULES, parse_rule
from llava_st_hf.model.grammar_text_llava_st import CLASSES, character_class
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.model.tokenizer_llava_st import add_coordinate_tokens_to_tokenizer
from modeling_tests.grammar_walks import Asked, constraint_of, random_questions, walk
from modeling_tests.processors import CHAT_TOKENS, tiny_processor
from modeling_tests.reference import REFERENCE


# Tokens of several symbols, as merges of byte-level tokenizers are, and parts of what the parser reads.
MERGES = re.findall(
    r"\S+",
    """
}. }, }: '{ Ġ{ Ġ[ [[ ]. ], ]: :[ Ġ:[ :Ġ[ .[ {{ ]} <T <TEMP TEMP- -0 > 041> 12 Ġ12: :Ġ 5s object Ġobject Ġbounding Ġbox Ġboxes es: Ġstarts
starts Ġin in Ġends Ġat and Ġand Ġthen the Ġa ted Ġuntil Ġto Ġfrom , Ġ, ,Ġ ĠĠ Ċ ĊĊ Ã© âĢ âĢĵ ÂłĠ Ġdog man Ġwalks . Ġ. .. ?
""",
)


@pytest.fixture(scope="module")
def processor():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = list(dict.fromkeys([*alphabet, *MERGES]))
    backend = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_tokens([*CHAT_TOKENS, *SPECIAL_TOKENS.values()], special_tokens=True)
    add_coordinate_tokens_to_tokenizer(tokenizer, 100, 100)
    return tiny_processor(tokenizer=tokenizer)


@pytest.fixture(scope="module")
def symbols(processor):
    return processor.tokenizer.convert_tokens_to_ids(["{", "}", "[", "]", ":", "]:", ":["])


def following(processor, texts: list[str], questions: list[Asked]) -> list[bool]:
    """Whether each text, with the end token, follows the grammar of the answer to its question."""
    rows = [torch.tensor([*processor.tokenizer(text)["input_ids"], processor.tokenizer.eos_token_id]).long() for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=processor.tokenizer.pad_token_id)
    off = constraint_of(processor, questions).off_grammar(tokens)
    return [row not in off for row in range(len(texts))]


def follows(processor, text: str, asked: Asked) -> bool:
    return following(processor, [text], [asked])[0]


def notes_on_form(asked: Asked, notes: list[str]) -> list[str]:
    """Notes that a grammar excludes. An answer in free text may describe several objects at one time in one event."""
    return [note for note in notes if asked.task is not None or "has several boxes at one time" not in note]


# Random answers


@pytest.mark.parametrize("seed", range(4))
def test_grammar_random_answers_parse_without_notes(processor, symbols, seed):
    questions = random_questions(100, seed)
    constraint = constraint_of(processor, questions)
    shortest = [constraint.grammar.shortest(rule) for rule in constraint.rules]
    extra = random.Random(seed).choices((0, 1, 2, 4, 8, 16, 32), k=len(questions))
    limits = [minimum + more for minimum, more in zip(shortest, extra, strict=True)]
    tokenizer = processor.tokenizer
    for asked, limit, ids in zip(questions, limits, walk(constraint, limits, seed, symbols), strict=True):
        assert len(ids) <= limit
        text = processor.decode_answer(torch.tensor(ids))
        answer = asked.parse(text)
        assert notes_on_form(asked, answer["notes"]) == [], (asked, text)
        found = [match[0] for match in COORDINATE_TOKEN.finditer(text)]
        assert found == [name for name in tokenizer.convert_ids_to_tokens(ids) if COORDINATE_TOKEN.fullmatch(name)]
        if asked.task is not None:
            _check_events(asked, answer["events"], text)


def _check_events(asked: Asked, events: list[dict], text: str) -> None:
    """What the answer to each task must have."""
    boxes = [box for event in events for box in event["boxes"]]
    if asked.task in ("reg", "tr"):
        assert not COORDINATE_TOKEN.search(text) and len(events) == 1 and events[0]["caption"]
    if asked.task in ("rec", "dgc"):
        assert len(re.findall(r"\[", text)) == len(boxes) >= 1
    if asked.task == "rec":
        assert len(boxes) == 1
    if asked.task in ("tvg", "stvg"):
        assert all(event["start"] <= event["end"] for event in events)
    if asked.task in ("stvg", "svg", "elc"):
        (tubelet,) = [event for event in events if event["boxes"]]
        frames = [box["frame"] for box in tubelet["boxes"]]
        assert frames and all(before < after for before, after in pairwise(frames))
        first, last = (99 * asked.span[0], 99 * (asked.span[1] or 1)) if asked.span else (0, 99)
        if asked.task == "stvg":
            first, last = 10 * tubelet["start"], 10 * tubelet["end"]
        elif asked.task == "elc" and tubelet["end"] is not None:
            last = 10 * tubelet["end"]
        assert first - 1 < frames[0] and frames[-1] < last + 1


@pytest.mark.parametrize("rule", RULES)
def test_grammar_every_limit_gives_complete_answers(processor, symbols, rule):
    kind = TASKS[rule].medium if rule in TASKS else rule.removeprefix("auto_")
    given = {"svg": {"span": (0.2, 0.7)}, "tr": {"span": (0.2, 0.7)}, "elc": {"start": 0.2}, "reg": {"box": (0, 0, 1, 1)}}
    asked = Asked(rule if rule in TASKS else None, kind, given.get(rule, {}))
    minimum = constraint_of(processor, [asked]).grammar.shortest(rule)
    limits = list(range(minimum, 61))
    lengths = []
    for ids, limit in zip(walk(constraint_of(processor, [asked] * len(limits)), limits, 0, symbols, spread=0.5), limits, strict=True):
        assert notes_on_form(asked, asked.parse(processor.decode_answer(torch.tensor(ids)))["notes"]) == []
        assert len(ids) <= limit
        lengths.append(len(ids))
    assert lengths[0] == minimum and max(lengths) == 60


def test_grammar_shortest_answers_have_the_expected_lengths(processor):
    grammar = constraint_of(processor, []).grammar
    # With the tokens `:[` and `].`; the end token counts.
    expected = {"rec": 7, "reg": 2, "dgc": 8, "tvg": 5, "tr": 2, "stvg": 12, "svg": 8, "elc": 10, "auto_image": 2, "auto_video": 2}
    assert {rule: grammar.shortest(rule) for rule in RULES} == expected


# Tables


def test_grammar_every_token_has_the_transitions_of_its_characters(processor):
    automaton, tables = answer_automaton(), constraint_of(processor, []).grammar.tables
    coordinates = range(*tables.coordinates)
    added = set(processor.tokenizer.added_tokens_decoder)
    num_states, num_signatures = len(automaton.step), tables.need.shape[1]
    checked = 0
    for token_id in range(len(processor.tokenizer)):
        text = processor.tokenizer.decode([token_id])
        moves = tables.moves.reshape(-1, num_signatures, 3)[:num_states, tables.signature[token_id], 0]
        if token_id in added:
            assert token_id in coordinates or not moves.any()
            continue
        states = list(range(num_states))
        for character in text:
            states = [automaton.step[state, CLASSES.index(character_class(character))] for state in states]
        assert moves.tolist() == states, text
        checked += len(text) > 1
    assert checked > 50


def test_advance_all_equals_advance_token_by_token(processor):
    constraint = constraint_of(processor, random_questions(20, 0))
    grammar, generator = constraint.grammar, torch.Generator().manual_seed(0)
    # Tokens that the grammar allows, and at some places any.
    state, tokens = constraint.start, []
    states = [state]
    for _ in range(30):
        logits = torch.randn(20, grammar.vocab_size, generator=generator)
        forbidden = grammar.mask(state, 10_000) & (torch.rand(20, 1, generator=generator) < 0.97)
        tokens.append(logits.masked_fill(forbidden, -torch.inf).argmax(-1))
        state = grammar.advance(state, tokens[-1])
        states.append(state)
    expected = torch.stack(states, dim=1)
    assert torch.equal(grammar.advance_all(constraint.start, torch.stack(tokens, dim=1)), expected)
    assert (expected[:, -1, 0] == 0).any() and (expected[:, -1, 0] != 0).any()
    assert torch.equal(grammar.advance_all(constraint.start, torch.zeros(20, 0, dtype=torch.long)), constraint.start[:, None])
    remaining = torch.arange(31).expand(20, -1) + 20
    masks = torch.stack([grammar.mask(expected[:, step], remaining[:, step]) for step in range(31)], dim=1)
    assert torch.equal(grammar.mask(expected, remaining), masks)


def test_mask_after_the_end_allows_only_end_tokens_and_none_of_wider_logits(processor):
    constraint = constraint_of(processor, [Asked("tvg", "video", {})])
    end = processor.tokenizer.eos_token_id
    grammar = constraint.grammar.bound_to(len(processor.tokenizer) + 5, [end, 3], "cpu")
    ids = [*processor.draft_template("tvg"), end]
    states = grammar.advance_all(constraint.start, torch.tensor([ids]))
    assert (~grammar.mask(states[:, -1], 1)).nonzero()[:, 1].tolist() == [3, end]
    assert grammar.mask(states, 100)[..., -5:].all()
    free = processor.answer_constraint([None], [None])
    allowed = ~grammar.mask(free.start, 1)[0]
    assert allowed[:-5].all() and not allowed[-5:].any()


def test_bounds_of_coordinates_follow_earlier_ones(processor):
    tokenizer = processor.tokenizer
    grammar = constraint_of(processor, []).grammar

    def allowed(text: str, asked: Asked) -> tuple[str, str]:
        """First and last coordinate token that may follow a text."""
        state = grammar.advance_all(constraint_of(processor, [asked]).start, torch.tensor([tokenizer(text)["input_ids"]]).long())[:, -1]
        ids = [token_id for token_id in (~grammar.mask(state, 100))[0].nonzero()[:, 0].tolist() if token_id in processor._coordinate_ids]
        names = list(tokenizer.convert_ids_to_tokens(ids))
        return (names[0], names[-1]) if names else ("", "")

    box = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"
    tvg, stvg = Asked("tvg", "video", {}), Asked("stvg", "video", {})
    svg, elc = Asked("svg", "video", {"span": (0.25, 0.5)}), Asked("elc", "video", {"start": 0.25})
    rec = Asked("rec", "image", {})
    assert allowed("[", rec) == ("<WIDTH-000>", "<WIDTH-099>")
    assert allowed("[<WIDTH-010><HEIGHT-020>", rec) == ("<WIDTH-010>", "<WIDTH-099>")
    assert allowed("[<WIDTH-010><HEIGHT-020><WIDTH-030>", rec) == ("<HEIGHT-020>", "<HEIGHT-099>")
    assert allowed("In {<TEMP-030>", tvg) == ("<TEMP-030>", "<TEMP-099>")
    assert allowed("{<TEMP-030><TEMP-050>} Box: ", stvg) == ("<TEMP-030>", "<TEMP-050>")
    assert allowed(f"{{<TEMP-030><TEMP-050>}}<TEMP-040>:{box}", stvg) == ("<TEMP-041>", "<TEMP-050>")
    assert allowed(f"{{<TEMP-030><TEMP-050>}}<TEMP-050>:{box}", stvg) == ("", "")
    assert allowed("", svg) == ("<TEMP-024>", "<TEMP-050>")  # 24.75 and 49.5 bins
    assert allowed("Ends in ", elc) == ("<TEMP-025>", "<TEMP-099>")  # not before the start
    assert allowed("Ends in <TEMP-060>, it walks. ", elc) == ("<TEMP-024>", "<TEMP-060>")
    assert allowed("Ends in {", elc) == ("<TEMP-024>", "<TEMP-099>")
    assert allowed("Ends in {<TEMP-024>", elc) == ("<TEMP-025>", "<TEMP-099>")
    assert allowed("Ends in {<TEMP-030>", elc) == ("<TEMP-030>", "<TEMP-099>")


# Text


_PARTS = ("object", "bounding", "box", "boxes", "starts", "ends", "in", "at", "and", "then", " ", " ", ", ", ":", ". ", "a", "bo", "ſ")


def test_captions_that_the_grammar_accepts_are_read_as_captions(processor):
    asked, generator = Asked("tr", "video", {"span": (0.2, 0.7)}), random.Random(0)
    texts = ["".join(generator.choices(_PARTS, k=generator.randint(0, 8))) for _ in range(2000)]
    accepted = following(processor, texts, [asked] * len(texts))
    assert 100 < sum(accepted) < 1900
    for text, follows_grammar in zip(texts, accepted, strict=True):
        if follows_grammar:
            (event,) = asked.parse(text)["events"]
            assert event["caption"], text


@pytest.mark.parametrize("text", ["a bear", "a red cross", "It boxes.", "x", "objects", "the", "5"])
def test_caption_of_any_other_word_is_accepted(processor, text):
    assert follows(processor, text, Asked("tr", "video", {"span": (0.2, 0.7)}))


@pytest.mark.parametrize("text", ["", "and", "Object bounding box:", "starts in", "object bounding boxand", "ſtarts", ". , ."])
def test_caption_without_words_is_refused(processor, text):
    assert not follows(processor, text, Asked("tr", "video", {"span": (0.2, 0.7)}))


BOX = "[<WIDTH-010><HEIGHT-020><WIDTH-030><HEIGHT-040>]"


@pytest.mark.parametrize(
    "text, kind",
    [
        ("It is red.", "video"),
        ("It is <TEMP-033>.", "video"),
        (BOX, "video"),
        (f"Frame 12, at {BOX}.", "video"),
        (f"At <TEMP-033> it is at {BOX}.", "video"),
        (f"Ends in <TEMP-033>, a child. Object bounding box: <TEMP-030>:{BOX}<TEMP-031>:{BOX}.", "video"),
        (f"{{<TEMP-001><TEMP-005>}}, A. <TEMP-001>:{BOX}, <TEMP-004>:{BOX}. {{<TEMP-000><TEMP-003>}}: B <TEMP-002>:{BOX}", "video"),
        (f"the man <TEMP-030>:{BOX}<TEMP-031>:{BOX}, the dog <TEMP-030>:{BOX} and {BOX}", "video"),
        (f"A man {BOX} rides horses {BOX}{BOX} in a field.", "image"),
        ("It is red.", "image"),
    ],
)
def test_answer_to_a_question_in_free_text_is_accepted(processor, text, kind):
    asked = Asked(None, kind, {})
    assert follows(processor, text, asked) and notes_on_form(asked, asked.parse(text)["notes"]) == []


@pytest.mark.parametrize(
    "text, kind",
    [
        (f"12: {BOX}", "video"),
        (f"It is red. frame 12s: {BOX}", "video"),
        ("It is <TEMP-033>: red", "video"),
        ("It is <TEMP-033> : red", "video"),
        ("{<TEMP-033>}", "video"),
        ("{<TEMP-033><TEMP-005>}", "video"),
        (f"<TEMP-001>:{BOX} ends at <TEMP-005>", "video"),
        (f"<TEMP-005>:{BOX}<TEMP-001>:{BOX}", "video"),
        ("It is <TEMP-033>.", "image"),
        ("It is red <", "image"),
        ("[0.1, 0.2]", "image"),
        (BOX.replace("<WIDTH-030>", "<WIDTH-009>"), "image"),
    ],
)
def test_answer_that_is_not_well_formed_is_refused(processor, text, kind):
    assert not follows(processor, text, Asked(None, kind, {}))


# Answers of data and of the original model


def _sample(**fields) -> GroundingSample:
    return GroundingSample(**fields)


# Recorded answers without notes that are not of the form that their task asks for.
_OTHER_FORMS = {
    "Sorry.",
    "I can not find it.",
    "It is at I can not find it..",
    "<TEMP-010>",
    "{<TEMP-010><TEMP-020>}",
    "Ends in <TEMP-010>, a dog.",
}


@pytest.mark.parametrize("name", ["rec", "tvg", "stvg", "svg", "elc"])
def test_recorded_answers_are_accepted_if_they_have_no_notes(processor, name):
    texts = [row["outputs"] for row in json.loads((REFERENCE / "metrics" / f"{name}.json").read_text())]
    asked = Asked(name, TASKS[name].medium, {})
    accepted = following(processor, texts, [asked] * len(texts))
    assert sum(accepted) > len(texts) / 3
    for text, follows_grammar in zip(texts, accepted, strict=True):
        assert follows_grammar == (asked.parse(text)["notes"] == [] and text not in _OTHER_FORMS), text


def _answer_of_data(task: str) -> str:
    """The answer of training data to a task, with coordinate tokens."""
    boxes = tuple((number / 10, (10.0 * number, 50.0, 10.0 * number + 200, 200.0)) for number in (2, 3, 4))
    if TASKS[task].medium == "image":
        boxes = tuple((None, box) for _, box in boxes[: 3 if task == "dgc" else 1])
    sample = GroundingSample(
        "1",
        TASKS[task].medium,
        "a",
        text="A red cross moves.",
        span=None if TASKS[task].medium == "image" else (0.2, 0.4),
        unit="fraction",
        boxes=boxes,
        phrases=("A cat", ", a dog", "and a bear") if task == "dgc" else (),
    )
    sizes = {"t": ("TEMP", 1), "w": ("WIDTH", 990), "h": ("HEIGHT", 495)}

    def token(match: re.Match) -> str:
        name, size = sizes[match[1]]
        return f"<{name}-{round(float(match[2]) / size * 99):03d}>"

    return re.sub(r"<([twh])([\d.]+)(?:px)?>", token, question_and_answer(sample, task)[1])


@pytest.mark.parametrize("task", TASKS)
def test_answer_of_training_data_is_accepted_and_has_the_form_of_the_draft(processor, task):
    text = _answer_of_data(task)
    given = {"svg": {"span": (0.2, 0.4)}, "tr": {"span": (0.2, 0.4)}, "elc": {"start": 0.2}, "reg": {"box": (0, 0, 1, 1)}}
    asked = Asked(task, TASKS[task].medium, given.get(task, {}))
    assert follows(processor, text, asked) and notes_on_form(asked, asked.parse(text)["notes"]) == []
    draft = processor.tokenizer.decode(processor.draft_template(task))
    if task in ("reg", "tr"):
        assert draft == ""
        return
    with_caption = {"elc": ("A red cross moves", "it moves"), "dgc": ("A cat", "An object")}.get(task, ("", ""))
    form = re.sub(r"-\d+", "", text.replace(*with_caption))
    for phrase in ("a dog", "a bear"):
        form = form.replace(phrase, "an object")
    is_tubelet = task in ("stvg", "svg", "elc")
    assert re.sub(r"-\d+", "", draft) == (form.removesuffix(".") if is_tubelet else form)  # drafts go on with further boxes


def test_draft_template_without_task_is_empty_and_an_unknown_task_raises(processor):
    assert processor.draft_template(None) == []
    with pytest.raises(ValueError, match="task='vqa' is not a valid task"):
        processor.draft_template("vqa")


@pytest.mark.parametrize(
    "tasks, media, spans, message",
    [
        (["vqa"], ["image"], None, "task='vqa' is not a valid task"),
        (["tvg"], ["image"], None, "'tvg' is for answers about videos, but the question has an image"),
        (["tvg"], [None], None, "neither an image nor a video"),
        ([None], ["audio"], None, "'audio'"),
        (["tvg"], ["video", "video"], None, "got 1, 2 and 1"),
        (["svg"], ["video"], [], "got 1, 1 and 0"),
    ],
)
def test_answer_constraint_invalid_arguments_raise(processor, tasks, media, spans, message):
    with pytest.raises(ValueError, match=message):
        processor.answer_constraint(tasks, media, spans)


def test_answer_constraint_without_coordinate_tokens_raises():
    with pytest.raises(ValueError, match="no coordinate tokens"):
        tiny_processor(num_temporal_bins=0).answer_constraint(["tvg"], ["video"])


@pytest.mark.parametrize("rule", ["text (box", "text box)", "* text", "text unknown", 'text "unclosed'])
def test_parse_rule_invalid_rule_raises(rule):
    with pytest.raises(ValueError, match=r"[Rr]ule"):
        parse_rule(rule)
