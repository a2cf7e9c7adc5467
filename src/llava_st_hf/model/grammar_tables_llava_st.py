# SPDX-License-Identifier: Apache-2.0
"""The grammar of answers as tables over the tokens of one tokenizer, and the state of answers in progress.

A token of the vocabulary is the string of its characters, so that tokens of several symbols, such as `}.` and `:[`, need no rules of their
own. Tokens with equal transitions from all states have one *signature*: a table has a row per state and a column per signature, and a
vector maps the ids of the vocabulary to signatures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .coordinates_llava_st import AXES, AXIS_OF_NAME, COORDINATE_TOKEN, bin_to_position
from .grammar_automaton_llava_st import Automaton, answer_automaton
from .grammar_llava_st import COORDINATES, REGISTERS
from .grammar_text_llava_st import CLASSES, character_class


#: Columns of the state of an answer: the state of the automaton, then the registers.
COLUMNS = ("state", *REGISTERS)
_INFINITY = 1 << 30  # of bins
_NEVER = 1 << 20  # tokens to the end of an answer that cannot end
# Signatures of tokens that are not text: none of the tokenizer, another added token, an end token, a coordinate of each of `AXES`.
_UNKNOWN, _ADDED, _END, _FIRST_AXIS = 0, 1, 2, 3
#: The first signature of text.
FIRST_TEXT = _FIRST_AXIS + len(AXES)


class AnswerGrammar:
    """
    The rules of all tasks for one tokenizer.

    A state is a row of `len(COLUMNS)` integers. Methods take states with any leading dimensions, move no data between devices and never
    wait for one, so that they can be part of a CUDA graph.

    Args:
        vocab_size: width of the logits.
        end_token_ids: ids that end an answer.
        tables: see `_Tables`.

    Attributes:
        need: (states, signatures) number of tokens of the shortest complete answer that goes on with a token, this and the end included.
    """

    def __init__(self, tables: "_Tables", vocab_size: int, end_token_ids: Sequence[int], device="cpu"):
        self.tables, self.vocab_size, self.end_token_ids = tables, vocab_size, tuple(end_token_ids)
        self.device = torch.device(device)
        signature = np.full(max(vocab_size, len(tables.signature)), _UNKNOWN)
        signature[: len(tables.signature)] = tables.signature
        signature[list(end_token_ids)] = _END
        self.signature = torch.tensor(signature[:vocab_size], device=device)  # (vocab_size,)
        bins = torch.zeros(vocab_size, dtype=torch.long)
        self._first, self._after = tables.coordinates
        self.bins = torch.tensor(tables.bins, device=device)  # (coordinates,)
        bins[self._first : self._after] = self.bins.cpu()
        self._token = torch.stack((self.signature, bins.to(device)), dim=-1)  # (vocab_size, 2)
        self.need = torch.tensor(tables.need, device=device)
        self._bounds = torch.tensor(tables.bounds, device=device)  # (states, 3) columns
        self._moves = torch.tensor(tables.moves, device=device)  # (states · signatures, 3)
        self._next = self._moves[:, 0].contiguous()
        self._num_signatures = tables.need.shape[1]

    def to(self, device) -> "AnswerGrammar":
        """The grammar with its tables on a device."""
        return self if torch.device(device) == self.device else AnswerGrammar(self.tables, self.vocab_size, self.end_token_ids, device)

    def advance(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """
        States after one more token. A token that a state forbids may lead to a state which allows only end tokens, as an end token does.

        Args:
            state: (..., columns) int64.
            tokens: (...,) int64.

        Returns:
            (..., columns).
        """
        token = self._token[tokens]
        moved = self._moves[torch.add(token[..., 0], state[..., 0], alpha=self._num_signatures)]
        # Column 0 receives the bin where no register does.
        state = state.scatter(-1, moved[..., 1:2], token[..., 1:] + moved[..., 2:])
        state[..., 0] = moved[..., 0]
        return state

    def advance_all(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """
        States before the first of several tokens and after each.

        Args:
            state: (batch_size, columns) int64.
            tokens: (batch_size, length) int64.

        Returns:
            (batch_size, length + 1, columns).
        """
        token = self._token[tokens]  # (batch_size, length, 2)
        if not tokens.shape[1]:
            return state[:, None]
        signatures, numbers, keys = token[..., 0], [state[:, 0]], []
        for position in range(tokens.shape[1]):
            keys.append(torch.add(signatures[:, position], numbers[-1], alpha=self._num_signatures))
            numbers.append(self._next[keys[-1]])
        _, columns, plus = self._moves[torch.stack(keys, dim=1)].split(1, dim=-1)  # (batch_size, length, 1)
        registers = torch.arange(state.shape[-1], device=state.device)
        places = torch.arange(1, tokens.shape[1] + 1, device=state.device)[:, None]
        written = torch.where(columns == registers, places, 0).cummax(dim=1).values  # place of the last bin of a register; 0 for the start
        bins = (token[..., 1:] + plus).expand(-1, -1, state.shape[-1])
        after = torch.cat((state[:, None], bins), dim=1).gather(1, written)
        registers_of = torch.cat((state[:, None], after), dim=1)[..., 1:]
        return torch.cat((torch.stack(numbers, dim=1)[..., None], registers_of), dim=-1)

    def mask(self, state: torch.Tensor, remaining: torch.Tensor | int) -> torch.Tensor:
        """
        Tokens that may not come next.

        Args:
            state: (..., columns).
            remaining: (...,) tokens left, including the next one. Answers can be completed within it if it was enough at their start.

        Returns:
            (..., vocab_size) bool, True for a token that the grammar forbids or after which the answer would be too long. In states after
            an end token only end tokens are allowed.
        """
        number = state[..., 0]
        limit = remaining if isinstance(remaining, int) else remaining[..., None]
        # Several times as fast as indexing with the vector.
        forbidden = (self.need[number] > limit).gather(-1, self.signature.expand(*number.shape, -1))
        bounds = state.gather(-1, self._bounds[number])  # (..., 3) two lower bounds and an upper one, which may be below them
        outside = (self.bins < bounds[..., :2].amax(-1, keepdim=True)) | (self.bins > bounds[..., 2:])
        forbidden[..., self._first : self._after] |= outside
        return forbidden

    def allows(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Whether the grammar allows tokens (...,) in states (..., columns), without a limit of tokens: (...,) bool."""
        signature, bins = self._token[tokens].unbind(-1)
        first, second, last = state.gather(-1, self._bounds[state[..., 0]]).unbind(-1)
        within = (bins >= first) & (bins >= second) & (bins <= last)
        is_coordinate = (signature >= _FIRST_AXIS) & (signature < FIRST_TEXT)
        return (self.need[state[..., 0], signature] < _NEVER) & (within | ~is_coordinate)

    def shortest(self, rule: str) -> int:
        """Number of tokens of the shortest answer by a rule, with its end token."""
        return int(self.tables.need[self.tables.starts[rule]].min())

    def bound_to(self, vocab_size: int, end_token_ids: Iterable[int] | None, device) -> "AnswerGrammar":
        """The grammar for logits of another width, other end tokens (None: the same) or another device."""
        ends = self.end_token_ids if end_token_ids is None else tuple(end_token_ids)
        if (vocab_size, ends) == (self.vocab_size, self.end_token_ids):
            return self.to(device)
        return AnswerGrammar(self.tables, vocab_size, ends, device)


@dataclass(frozen=True)
class AnswerConstraint:
    """
    The grammar and the first states of the answers of a batch.

    Args:
        grammar: with tables on the device of `start`.
        start: (batch_size, columns) int64.
        rules: of each answer; None for one without constraint.
    """

    grammar: AnswerGrammar
    start: torch.Tensor
    rules: tuple[str | None, ...]

    def bound_to(self, vocab_size: int, end_token_ids: Iterable[int] | None, device) -> "AnswerConstraint":
        """See `AnswerGrammar.bound_to`."""
        return replace(self, grammar=self.grammar.bound_to(vocab_size, end_token_ids, device), start=self.start.to(device))

    def start_of(self, num_rows: int) -> torch.Tensor:
        """
        First states of the answers of a batch, of which as many follow each other for each prompt: (num_rows, columns).

        Raises:
            ValueError: If `num_rows` is not a multiple of the number of prompts.
        """
        num_prompts = len(self.start)
        if num_rows % num_prompts:
            raise ValueError(f"The grammar is for {num_prompts} prompts, but there are {num_rows} answers.")
        return self.start.repeat_interleave(num_rows // num_prompts, dim=0)

    def check_limit(self, max_new_tokens: int) -> None:
        """
        Checks that every answer can be completed.

        Raises:
            ValueError: naming the limit, the rule and its minimum.
        """
        shortest = {rule: self.grammar.shortest(rule) for rule in self.rules if rule is not None}
        for rule, minimum in shortest.items():
            if minimum >= _NEVER:
                raise ValueError(f"The tokenizer has no tokens for an answer by the grammar {rule!r}. Generate without a grammar.")
            if minimum > max_new_tokens:
                raise ValueError(
                    f"max_new_tokens={max_new_tokens} is too small for the grammar {rule!r}: its shortest answer has {minimum} tokens."
                )

    def off_grammar(self, tokens: torch.Tensor) -> list[int]:
        """
        Indices of the answers that do not follow the grammar or have no end token.

        Args:
            tokens: (rows, length) answers, as many per prompt as `generate` returns. What follows an end token is not read.
        """
        states, tables = self.grammar.advance_all(self.start_of(len(tokens)), tokens), self.grammar.tables
        follows = self.grammar.allows(states[:, :-1], tokens) | (states[:, :-1, 0] == tables.finished)
        complete = (states[:, -1, 0] == tables.finished) | (states[:, -1, 0] == tables.free)
        return (~(follows.all(dim=1) & complete)).nonzero().flatten().tolist()


@dataclass(frozen=True)
class _Tables:
    """
    What does not depend on a model. States are those of the automaton, then `finished` and `free`, that of answers without constraint.

    Args:
        signature: (tokens,) of each token of the tokenizer.
        coordinates: first id of a coordinate token, and one after the last.
        bins: (coordinates,) bin of each; -1 for a token between them that is not a coordinate.
        need: see `AnswerGrammar`.
        bounds: (states, 3) columns of two lower bounds and an upper bound of the coordinate that may follow.
        moves: (states · signatures, 3) next state, the column that receives the bin, 0 for none, and what is added to the bin.
        starts: rule → state.
        num_temporal_bins: number of bins of the time axis.
    """

    signature: np.ndarray
    coordinates: tuple[int, int]
    bins: np.ndarray
    need: np.ndarray
    bounds: np.ndarray
    moves: np.ndarray
    starts: dict[str, int]
    num_temporal_bins: int

    @property
    def finished(self) -> int:
        return self.need.shape[0] - 2

    @property
    def free(self) -> int:
        return self.need.shape[0] - 1


def make_grammar(tokenizer: PreTrainedTokenizerBase) -> AnswerGrammar:
    """
    The grammar for a tokenizer, its end token and logits of its size; see `AnswerGrammar.bound_to` for those of a model.

    Raises:
        ValueError: If the tokenizer has no coordinate tokens.
    """
    coordinates = {}
    for token, token_id in tokenizer.get_added_vocab().items():
        if found := COORDINATE_TOKEN.fullmatch(token):
            coordinates[token_id] = (AXES.index(AXIS_OF_NAME[found["name"]]), int(found["bin"]))
    if not coordinates:
        raise ValueError("The tokenizer has no coordinate tokens (stage 1), so its answers have no grammar. Generate without a grammar.")
    first, after = min(coordinates), max(coordinates) + 1
    bins = np.array([coordinates.get(token_id, (0, -1))[1] for token_id in range(first, after)])
    automaton = answer_automaton()
    signature, vectors = _text_signatures(automaton, _token_texts(tokenizer, first))
    for token_id, (axis, _) in coordinates.items():
        signature[token_id] = _FIRST_AXIS + axis
    num_states = len(automaton.step)
    following = np.zeros((num_states + 2, FIRST_TEXT + len(vectors)), dtype=np.int64)
    writes, plus = np.zeros_like(following), np.zeros_like(following)
    following[:num_states, FIRST_TEXT:] = np.stack(vectors, axis=1)
    bounds = np.tile([COLUMNS.index(name) for name in ("zero", "zero", "infinity")], (num_states + 2, 1))
    kinds = tuple(COORDINATES.values())
    for state in np.flatnonzero(automaton.coordinate >= 0):
        kind = kinds[automaton.coordinate[state]]
        column = _FIRST_AXIS + AXES.index(kind.axis)
        following[state, column] = automaton.after_coordinate[state]
        writes[state, column], plus[state, column] = COLUMNS.index(kind.writes) if kind.writes else 0, kind.plus
        bounds[state] = [COLUMNS.index(name) for name in (kind.at_least[0], kind.at_least[-1], kind.at_most)]
    need = _tokens_needed(automaton, following)
    finished, free = num_states, num_states + 1
    following[:num_states, _END] = np.where(automaton.accepts, finished, 0)
    following[finished], following[free] = finished, free
    following[free, _END] = finished
    return AnswerGrammar(
        _Tables(
            signature=signature,
            coordinates=(first, after),
            bins=bins,
            need=need,
            bounds=bounds,
            moves=np.stack((following, writes, plus), axis=-1).reshape(-1, 3),
            starts=automaton.starts,
            num_temporal_bins=sum(axis == 0 for axis, _ in coordinates.values()),
        ),
        len(tokenizer),
        [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id],
    )


def _token_texts(tokenizer: PreTrainedTokenizerBase, anchor: int) -> list[str | None]:
    """
    The characters that each token adds to an answer; None for an added token. Bytes of an incomplete character are U+FFFD.

    Tokens are decoded after a coordinate token, `anchor`: some decoders remove a blank at the beginning of a text.
    """
    prefix, added = tokenizer.decode([anchor]), set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    pairs = [[anchor, token_id] for token_id in range(len(tokenizer))]
    if tokenizer.is_fast:
        texts = tokenizer.backend_tokenizer.decode_batch(pairs, skip_special_tokens=False)
    else:
        texts = [tokenizer.decode(pair, skip_special_tokens=False) for pair in pairs]
    return [None if token_id in added else text[len(prefix) :] for token_id, text in enumerate(texts)]


def _text_signatures(automaton: Automaton, texts: list[str | None]) -> tuple[np.ndarray, list[np.ndarray]]:
    """
    Signatures of tokens by their texts, and of each signature the (states,) next states.

    The transitions of a text are those of its characters one after another. Texts have few different ones, which are computed once.
    """
    step = {symbol: automaton.step[:, column].copy() for column, symbol in enumerate(CLASSES)}
    vectors = [np.arange(len(automaton.step))]
    numbers = {vectors[0].tobytes(): 0}

    class Row(dict):
        """Character → number of the transitions that follow when it is appended to a text with those of `number`."""

        def __init__(self, number: int):
            self.number = number

        def __missing__(self, character: str) -> int:
            after = step[character_class(character)][vectors[self.number]]
            number = numbers.setdefault(after.tobytes(), len(vectors))
            if number == len(vectors):
                vectors.append(after)
                rows.append(Row(number))
            self[character] = number
            return number

    rows = [Row(0)]
    found = np.full(len(texts), -1)
    for token_id, text in enumerate(texts):
        if text:  # a token without characters would make an answer longer without end
            number = 0
            for character in text:
                number = rows[number][character]
            found[token_id] = number
    used = np.unique(found[found >= 0])
    signature = np.where(found >= 0, FIRST_TEXT + np.searchsorted(used, found), _ADDED)
    return signature, [vectors[number] for number in used]


def _tokens_needed(automaton: Automaton, following: np.ndarray) -> np.ndarray:
    """`need` of `AnswerGrammar`, by relaxation: the shortest completion after a token has one token less than with it."""
    num_states = len(automaton.step)
    need = np.full(following.shape, _NEVER, dtype=np.int64)
    need[:num_states, _END] = np.where(automaton.accepts, 1, _NEVER)
    while True:
        shortest = need.min(axis=1)
        shortest[0] = _NEVER
        after = np.minimum(need, 1 + shortest[following])
        after[:, :_FIRST_AXIS] = need[:, :_FIRST_AXIS]
        after[0] = after[num_states:] = _NEVER
        if np.array_equal(after, need):
            break
        need = after
    need[[0, num_states], _END] = 1
    need[num_states + 1, _ADDED:] = 0
    return np.minimum(need, _NEVER)


def first_state(tables: _Tables, rule: str | None, span: tuple[float, float | None] | None = None) -> list[int]:
    """
    The state of an answer without tokens.

    Args:
        rule: a key of `grammar_llava_st.RULES`; None for an answer without constraint.
        span: of the prompt, as fractions; its end is None where only the start is known. Bounds the times of "svg" and "elc".
    """
    last = tables.num_temporal_bins - 1
    state = dict.fromkeys(COLUMNS, 0) | {"infinity": _INFINITY, "end": _INFINITY}
    state["state"] = tables.free if rule is None else tables.starts[rule]
    if rule in ("svg", "elc") and span is not None:
        start, end = span
        # Answers give the nearest bin, which may be just outside the span. The end of an event, however, is compared with its start.
        state["begin"] = floor(start * last)
        state["start"] = next(bin for bin in range(state["begin"], last + 1) if bin == last or bin_to_position(bin, last + 1) >= start)
        if end is not None and rule == "svg":
            state["end"] = min(ceil(end * last), last)
    return list(state.values())
