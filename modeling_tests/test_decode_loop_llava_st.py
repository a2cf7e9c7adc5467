# SPDX-License-Identifier: Apache-2.0
"""The decode loop with drafts generates what `generate` of transformers does."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache, StoppingCriteria, StoppingCriteriaList, TextStreamer

from llava_st_hf.model import decode_loop_llava_st
from llava_st_hf.model.cache_name_llava_st import CACHE_NAME
from llava_st_hf.model.decode_loop_llava_st import DecodeLoop, DecodeSettings
from llava_st_hf.model.drafts_llava_st import DraftHistory, TokenClasses, _period
from llava_st_hf.model.grammar_logits_llava_st import GrammarLogitsProcessor
from modeling_tests.factories import mixed_batch, single_prompts, tiny_config, tiny_model
from modeling_tests.processors import PICTURE


NEW = 60
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
ENDS = [121, 100]  # two of the four answers contain the first, at different places


@pytest.fixture(scope="module")
def greedy(model):
    return model.generate(**mixed_batch(model.config), **GREEDY)


def passes(model, inputs, templates=None, **options) -> tuple[torch.Tensor, int]:
    """Sequences, and the number of passes of the decoder after the prompt's."""
    loop = DecodeLoop(DecodeSettings(speculative=True, draft_templates=templates))
    return model.generate(**inputs, **{**GREEDY, **options}, custom_generate=loop), loop.num_passes


# ============================================================ Equality


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static", "disable_compile": True},
        {"eos_token_id": ENDS},
        {"eos_token_id": ENDS, "max_new_tokens": 1},
        {"max_new_tokens": 2},
        {"suppress_tokens": [17, 40]},
    ],
    ids=str,
)
def test_generate_speculative_equals_generate(model, batch, options):
    """Four prompts of unequal lengths, whose answers end at different lengths."""
    expected = model.generate(**mixed_batch(model.config), **{**GREEDY, **options})
    assert torch.equal(model.generate(**batch, **{**GREEDY, **options}, speculative=True), expected)


def other_model(kind: str):
    """Tiny model with tied embeddings, with eager attention, or with a layer whose sliding window is shorter than the prompts."""
    layers = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 20, "use_sliding_window": True}
    model = tiny_model(tie_word_embeddings=kind == "tied", text_config=layers if kind == "sliding window" else {})
    model.set_attn_implementation("eager" if kind == "eager" else "sdpa")
    return model


@pytest.mark.parametrize("kind", ["tied", "eager", "sliding window"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_speculative_of_other_models_equals_generate(kind, cache):
    """Also the log probabilities, since the answers of random weights depend little on what a token attends to."""
    model = other_model(kind)
    options = {**GREEDY, "cache_implementation": cache, "disable_compile": True, "return_dict_in_generate": kind != "sliding window"}
    if kind == "sliding window":
        expected = model.generate(**mixed_batch(model.config), **GREEDY)
        assert torch.equal(model.generate(**mixed_batch(model.config), **options, speculative=True), expected)
    expected = model.generate(**mixed_batch(model.config), **{**options, "return_dict_in_generate": True}, output_logits=True)
    logprobs = torch.stack(expected.logits, dim=1).log_softmax(-1).amax(-1)
    scores = []

    def output(self, prefilled, original=decode_loop_llava_st._Decoding._output):
        scores.append(self.answers.logprobs[:, : logprobs.shape[1]])
        return original(self, prefilled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_loop_llava_st._Decoding, "_output", output)
        model.generate(**mixed_batch(model.config), **options, speculative=True, output_coordinate_scores=True)
    torch.testing.assert_close(scores[0], logprobs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"bad_words_ids": [[17], [40, 41]]}], ids=str
)
def test_generate_speculative_with_processors_of_earlier_tokens_equals_generate(model, row, options):
    expected = model.generate(**single_prompts(model.config)[row], **GREEDY, **options)
    assert torch.equal(model.generate(**single_prompts(model.config)[row], **GREEDY, **options, speculative=True), expected)


def test_generate_speculative_takes_fewer_passes_where_answers_repeat(model):
    """The greedy answer of random weights runs into a loop of a few tokens."""
    sequences, count = passes(model, single_prompts(model.config)[0])
    assert torch.equal(sequences, model.generate(**single_prompts(model.config)[0], **GREEDY))
    assert count < NEW / 4


def test_generate_speculative_with_the_answer_as_template_accepts_all_drafts(model, greedy):
    """Row 3 repeats five coordinates, which the prediction of a wrong draft's successor does not find."""
    answer = greedy[3, -NEW:].tolist()
    sequences, count = passes(model, single_prompts(model.config)[3], templates=[answer])
    assert sequences[0, -NEW:].tolist() == answer
    assert count == -(-(NEW - 1) // 17)  # 16 drafts and one more token per pass; the prompt's pass gives the first
    assert count < passes(model, single_prompts(model.config)[3])[1]


@pytest.mark.parametrize("num_drafts", [1, 3, 30])
def test_generate_speculative_with_other_numbers_of_drafts_equals_generate(model, batch, greedy, num_drafts, monkeypatch):
    monkeypatch.setitem(decode_loop_llava_st.NUM_DRAFTS, "cpu", num_drafts)
    assert torch.equal(model.generate(**batch, **GREEDY, speculative=True), greedy)


def test_generate_compile_equals_generate_and_compiles_few_graphs(batch, greedy, monkeypatch):
    """With a backend that runs the graphs as they are: code generation takes half a minute."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    model = tiny_model()
    for _ in range(2):
        assert torch.equal(model.generate(**batch, **GREEDY, speculative=True, compile=True), greedy)
    graphs = counter.frame_count
    assert graphs > 0
    longer = {**GREEDY, "max_new_tokens": NEW + 200}
    assert torch.equal(model.generate(**batch, **longer, speculative=True, compile=True)[:, : greedy.shape[1]], greedy)
    assert counter.frame_count <= graphs + 1
    again = counter.frame_count
    model.generate(**batch, **{**GREEDY, "max_new_tokens": NEW + 400}, speculative=True, compile=True)
    assert counter.frame_count == again
    assert torch.equal(model.generate(**batch, **GREEDY), greedy)


def test_decode_step_has_no_host_synchronization(grounder, monkeypatch):
    """None of the operations of a pass returns a value to the host or has an output whose size depends on values: these wait for the GPU,
    and cannot be part of a CUDA graph."""
    operations = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operations.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    def step(self, end, original=decode_loop_llava_st._Decoding._step):
        with Recorder():
            original(self, end)

    monkeypatch.setattr(decode_loop_llava_st._Decoding, "_step", step)
    grounder([{"image": PICTURE, "text": "Where is it?"}] * 2, batch_size=2, speculative=True, grammar="auto", max_new_tokens=40)
    assert len(operations) > 100
    assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"} & set(operations)


# ============================================================ Caches of the caller


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("row", [0, 2])
def test_generate_speculative_with_the_cache_of_an_earlier_turn_goes_on_from_it(model, kind, row):
    def two_turns(**options):
        prompt = single_prompts(model.config)[row]
        cache = DynamicCache() if kind == "dynamic" else StaticCache(model.config.text_config, max_cache_len=400)
        answer = model.generate(**prompt, **GREEDY, **{CACHE_NAME: cache}, **options)
        assert cache.get_seq_length() == answer.shape[1] - 1
        ids = torch.cat((answer, torch.tensor([[50, 51, 52]])), dim=1)
        return model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY, **{CACHE_NAME: cache}, **options), cache

    (expected, expected_cache), (sequences, cache) = two_turns(), two_turns(speculative=True)
    assert torch.equal(sequences, expected)
    length = sequences.shape[1] - 1
    for layer, other in zip(cache.layers, expected_cache.layers, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :length], other.keys[:, :, :length], atol=1e-4, rtol=1e-4)


def test_generate_speculative_returns_the_cache_on_request(model):
    outputs = model.generate(**single_prompts(model.config)[1], **GREEDY, speculative=True, return_dict_in_generate=True)
    assert outputs[CACHE_NAME].get_seq_length() == outputs.sequences.shape[1] - 1


def test_generate_speculative_with_a_grammar_equals_one_token_per_pass(grounder):
    """In a batch of three, up to the limit of tokens; a processor of the grammar may also be given by itself."""
    questions = [{"image": PICTURE, "task": "dgc"}, {"image": PICTURE, "task": "rec", "text": "it"}, {"image": PICTURE, "text": "Where?"}]
    expected = grounder(questions, batch_size=3, grammar="auto", max_new_tokens=50, speculative=False)
    assert any(answer["events"] for answer in expected)
    assert grounder(questions, batch_size=3, grammar="auto", max_new_tokens=50, speculative=True) == expected
    inputs = grounder.preprocess(questions[0])["model_inputs"]
    length = inputs["input_ids"].shape[1]
    constraint = grounder.processor.answer_constraint(["dgc"], ["image"])
    sequences = [
        grounder.model.generate(
            **inputs, max_new_tokens=50, logits_processor=[GrammarLogitsProcessor(constraint, length, 30)], speculative=speculative
        )
        for speculative in (False, True)
    ]
    assert torch.equal(*sequences) and sequences[0].shape[1] <= length + 30
    processor = GrammarLogitsProcessor(constraint, length, 30)
    with pytest.raises(ValueError, match="one grammar"):
        grounder.model.generate(**inputs, max_new_tokens=50, logits_processor=[processor], grammar=constraint, speculative=True)


def test_generate_speculative_sampling_with_a_grammar_gives_answers_without_notes(grounder):
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 2.0, "grammar": "auto", "max_new_tokens": 50, "speculative": True}
    for answer in grounder([{"image": PICTURE, "task": task} for task in ("dgc",) * 8], batch_size=8, **options):
        assert answer["events"] and answer["notes"] == []


# ============================================================ Sampling and scores


def test_generate_speculative_sampling_keeps_the_distribution(model):
    """Counts of pairs of tokens in 4,000 samples, of which drafts propose the most frequent answer, against the exact probabilities."""
    prompt = single_prompts(model.config)[3]
    options = {"do_sample": True, "top_k": 4, "temperature": 0.7, "max_new_tokens": 3}
    likely = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, -8:].tolist()
    torch.manual_seed(0)
    count = 4000
    loop = DecodeLoop(DecodeSettings(speculative=True, draft_templates=[likely]))
    samples = model.generate(**single_prompts(model.config)[3], **options, num_return_sequences=count, custom_generate=loop)[:, -3:]
    expected = model.generate(
        **single_prompts(model.config)[3], **options, num_return_sequences=count, output_scores=True, return_dict_in_generate=True
    )
    first = expected.scores[0][0].softmax(-1)
    assert loop.num_passes <= 2
    for token in first.nonzero().flatten().tolist():
        share, probability = (samples[:, 0] == token).float().mean(), first[token]
        assert abs(share - probability) < 4 * (probability * (1 - probability) / count) ** 0.5
        # Second token given the first, from the scores of any row of the other run that begins with it.
        row = (expected.sequences[:, -3] == token).nonzero()
        chosen = samples[samples[:, 0] == token]
        if len(row) and len(chosen) > 100:
            second = expected.scores[1][row[0, 0]].softmax(-1)
            for other in second.nonzero().flatten().tolist():
                share, probability = (chosen[:, 1] == other).float().mean(), second[other]
                assert abs(share - probability) < 4 * (probability * (1 - probability) / len(chosen)) ** 0.5 + 1e-6


@pytest.mark.parametrize("speculative", [False, True])
def test_generate_output_coordinate_scores_are_log_probabilities_of_each_step(model, batch, speculative):
    options = {**GREEDY, "eos_token_id": ENDS, "return_dict_in_generate": True}
    expected = model.generate(**mixed_batch(model.config), **options, output_logits=True)
    outputs = model.generate(**batch, **options, output_coordinate_scores=True, speculative=speculative)
    assert torch.equal(outputs.sequences, expected.sequences)
    answers = expected.sequences[:, batch["input_ids"].shape[1] :]
    logprobs = torch.stack(expected.logits, dim=1).log_softmax(-1)  # (batch, new tokens, vocabulary)
    vocabulary = model.config.coordinates
    ended = torch.isin(answers, torch.tensor(ENDS)).cumsum(1)
    is_token = torch.nn.functional.pad(ended, (1, -1)) == 0
    torch.testing.assert_close(
        outputs.token_logprobs, torch.where(is_token, logprobs.gather(2, answers[..., None])[..., 0], 0), atol=1e-4, rtol=1e-4
    )
    coordinates = logprobs[..., vocabulary.start_token_id : vocabulary.end_token_id]
    torch.testing.assert_close(outputs.coordinate_logits, torch.where(is_token[..., None], coordinates, 0), atol=1e-4, rtol=1e-4)


def test_generate_coordinate_tolerance_accepts_drafts_nearby():
    classes = TokenClasses.from_vocabulary(tiny_config().coordinates, 129, torch.device("cpu"))
    first = tiny_config().coordinate_start_token_id
    decoding = object.__new__(decode_loop_llava_st._Decoding)
    decoding.settings, decoding.num_drafts, decoding.classes = DecodeSettings(True, coordinate_tolerance=1), 5, classes
    drafts = torch.tensor([[first + 2, first + 2, first + 5, 17, -1]])
    chosen = torch.tensor([[first + 3, first + 4, first + 6, 18, 0]])  # bin 5 is the last time, the next token is the first height
    assert decoding._matches(drafts, chosen).tolist() == [[1, 0, 0, 0, 0]]


def test_generate_coordinate_tolerance_accepts_no_draft_that_is_forbidden(grounder):
    """By the grammar, x2 ≥ x1. The template proposes boxes that break it, and the tolerance is the whole axis."""
    inputs = grounder.preprocess({"image": PICTURE, "task": "dgc"})["model_inputs"]
    constraint = grounder.processor.answer_constraint(["dgc"], ["image"])
    last = grounder.processor.num_spatial_bins - 1
    text = f"An object [<WIDTH-{last:03d}><HEIGHT-{last:03d}><WIDTH-000><HEIGHT-000>]"
    templates = [grounder.processor.tokenizer(text * 3, add_special_tokens=False)["input_ids"]]
    options = {"grammar": constraint, "draft_templates": templates, "speculative": True, "coordinate_tolerance": last}
    sampling = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 60}
    for seed in range(8):
        torch.manual_seed(seed)
        answers = grounder.model.generate(**inputs, **options, **sampling)[:, inputs["input_ids"].shape[1] :]
        assert constraint.off_grammar(answers) == []


def test_generate_with_a_grammar_passes_on_all_arguments(grounder, monkeypatch):
    settings = []
    original = DecodeLoop.__init__

    def init(self, given, *args, **kwargs):
        settings.append(given)
        original(self, given, *args, **kwargs)

    monkeypatch.setattr(DecodeLoop, "__init__", init)
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    inputs = grounder.preprocess({"image": PICTURE, "task": "dgc"})["model_inputs"]
    constraint = grounder.processor.answer_constraint(["dgc"], ["image"])
    given = {"speculative": True, "draft_templates": [[1, 2]], "coordinate_tolerance": 2, "output_coordinate_scores": True, "compile": True}
    grounder.model.generate(**inputs, grammar=constraint, max_new_tokens=40, return_dict_in_generate=True, **given)
    assert settings == [DecodeSettings(**given)]


# ============================================================ Drafts


def draft(prompt: list[int], template: list[int], answer: list[int], num_drafts: int = 16, carried=None) -> list[int]:
    """Drafts after `answer` in a vocabulary of 20 words, 10 times, 10 heights and 10 widths: `t`, `h` and `w` begin at 20, 30 and 40."""
    config = tiny_config(num_temporal_bins=10, num_spatial_bins=10)
    start = config.coordinate_start_token_id
    classes = TokenClasses.from_vocabulary(config.coordinates, start + 30, torch.device("cpu"))

    def ids(tokens):
        return [token if token < 20 else start + token - 20 for token in tokens]

    history = DraftHistory(classes, torch.tensor([ids(prompt)]), [ids(template)], 50, num_drafts)
    history.append(torch.tensor([ids(answer)]), torch.zeros(1, 1, dtype=torch.long))
    values = torch.zeros(1, num_drafts, 3, dtype=torch.long)
    if carried is not None:
        values[0, : len(carried)] = torch.tensor(carried)
    number = torch.tensor([[0 if carried is None else len(carried)]])
    found = history.draft(torch.tensor([[len(answer)]]), values, number)[0].tolist()
    return [token if token < start else token - start + 20 for token in found]


BOX_1, BOX_2 = [22, 7, 41, 32, 45, 36, 8], [24, 7, 42, 33, 46, 36, 8]  # time : [ width height width height ]


def test_draft_repeats_a_box_with_its_last_change():
    assert draft([5, 6], [], [1, *BOX_1, *BOX_2], 8) == [26, 7, 43, 34, 47, 36, 8, 28]


def test_draft_within_a_box_begins_at_the_next_edge():
    assert draft([5, 6], [], [1, *BOX_1, *BOX_2, 26, 7, 43], 5) == [34, 47, 36, 8, 28]


def test_draft_stays_within_the_bins_of_the_axis():
    assert draft([5], [], [1, 22, 7, 41, 32, 45, 31, 8, 27, 7, 45, 32, 49, 30, 8], 7) == [29, 7, 49, 32, 49, 30, 8]


def test_draft_takes_the_coordinates_that_the_last_pass_predicted():
    carried = [(5, 0, 0), (0, 0, 0), (9, 9, 1)]
    assert draft([5], [], [1, *BOX_1, *BOX_2], 4, carried) == [25, 7, 41, 34]


def test_draft_follows_the_template_and_repeats_its_last_box():
    template = [1, 2, *BOX_1, *BOX_2]
    drafted = draft([5] * 4, template, [1, 2, 23, 7, 44, 34, 48, 38, 8], 16)
    assert [token // 10 for token in drafted] == [token // 10 for token in ([*BOX_1] * 3)[:16]]
    assert draft([5] * 4, template, [1], 3) == [2, 22, 7]


def test_draft_ends_with_a_template_that_does_not_repeat():
    assert draft([5] * 4, [1, 2, 22, 7, 3, 4], [1], 8) == [2, 22, 7, 3, 4, -1, -1, -1]


@pytest.mark.parametrize("task", ["stvg", "svg", "elc"])
def test_draft_template_of_the_processor_repeats_a_box(grounder, task):
    processor, config = grounder.processor, grounder.model.config
    classes = TokenClasses.from_vocabulary(config.coordinates, config.text_config.vocab_size, torch.device("cpu"))
    template = processor.draft_template(task)
    period = _period(template, classes)
    assert processor.tokenizer.decode(template[-period:]) == "<TEMP-000>:[<WIDTH-000><HEIGHT-000><WIDTH-000><HEIGHT-000>]"


def test_draft_copies_words_of_the_prompt_up_to_its_end():
    assert draft([5, 5, 3, 4, 9, 10, 11], [], [2, 3, 4], 5) == [9, 10, 11, -1, -1]


def test_draft_without_a_match_is_empty():
    assert draft([5, 6], [], [1], 4) == [-1] * 4


# ============================================================ Streaming and stopping


class _Collector(TextStreamer):
    def __init__(self):
        self.received, self.ended = [], False

    def put(self, value):
        self.received.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_generate_speculative_streams_the_tokens_of_each_pass(model):
    prompt, streamer = single_prompts(model.config)[0], _Collector()
    sequences = model.generate(**prompt, **GREEDY, speculative=True, streamer=streamer)
    assert [token for part in streamer.received for token in part] == sequences[0].tolist()
    assert streamer.ended and max(map(len, streamer.received[1:])) > 1


class _StopsAt(StoppingCriteria):
    def __init__(self, length):
        self.length, self.seen = length, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.shape[1])
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


@pytest.mark.parametrize("new", [1, 2, 37])
def test_generate_speculative_stops_at_the_token_of_a_stopping_criterion(model, new):
    prompt = single_prompts(model.config)[0]
    length = prompt["input_ids"].shape[1] + new
    criterion = _StopsAt(length)
    sequences = model.generate(**prompt, **GREEDY, speculative=True, stopping_criteria=StoppingCriteriaList([criterion]))
    assert sequences.shape[1] == length
    assert criterion.seen == list(range(length - new + 1, length + 1))


# ============================================================ What is not supported


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "generation mode 'beam_search'"),
        ({"compile": True, "num_beams": 2}, "generation mode"),
        ({"stop_strings": ["a"]}, "stop_strings"),
        ({"use_cache": False}, "use_cache=False"),
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor depends on earlier tokens; use a batch of one"),
        ({"stopping_criteria": StoppingCriteriaList([_StopsAt(9)])}, "_StopsAt needs a batch of one prompt"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores=True"),
        ({"custom_generate": lambda model, input_ids, **kwargs: input_ids}, "custom_generate"),
        ({"coordinate_tolerance": -1}, "coordinate_tolerance is a number of bins"),
        ({"coordinate_tolerance": 1, "speculative": False}, "is for drafts"),
        ({"draft_templates": [[1], [2], [3]]}, "3 entries for 4 prompts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_generate_speculative_refuses_what_it_does_not_support(model, batch, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**batch, **{**GREEDY, "speculative": True, **options})


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"use_cache": False}, {"repetition_penalty": 1.3}, {"prompt_lookup_num_tokens": 3}], ids=str
)
def test_generate_speculative_none_falls_back_to_transformers(model, options):
    prompt = single_prompts(model.config)[0] if "prompt_lookup_num_tokens" in options else mixed_batch(model.config)
    expected = model.generate(**prompt, **GREEDY, **options)
    assert torch.equal(model.generate(**prompt, **GREEDY, **options, speculative=None), expected)


def test_generate_speculative_of_a_model_without_coordinate_tokens_is_an_error():
    model = tiny_model(use_coordinate_tokens=False)
    prompt = {"input_ids": torch.tensor([[10, 11]]), "attention_mask": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="coordinate tokens"):
        model.generate(**prompt, **GREEDY, speculative=True)
    assert torch.equal(model.generate(**prompt, **GREEDY, speculative=None), model.generate(**prompt, **GREEDY))


def test_generate_speculative_none_is_on_for_greedy_decoding_in_float32_only(monkeypatch):
    calls = []
    monkeypatch.setattr(DecodeLoop, "__call__", lambda self, model, input_ids, **kwargs: calls.append(model.dtype) or input_ids)
    prompt = {"input_ids": torch.tensor([[10, 11]]), "attention_mask": torch.ones(1, 2)}
    for model in (tiny_model(), tiny_model().to(torch.bfloat16)):
        for do_sample in (False, True):
            model.generate(**prompt, max_new_tokens=2, do_sample=do_sample, speculative=None)
    assert calls == [torch.float32]
