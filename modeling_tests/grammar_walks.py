# SPDX-License-Identifier: Apache-2.0
"""Answers made of random logits under the grammar, without a model."""

from dataclasses import dataclass

import torch

from llava_st_hf import LlavaSTProcessor, MediaInfo, parse_answer
from llava_st_hf.model.grammar_tables_llava_st import AnswerConstraint
from llava_st_hf.model.tasks_llava_st import TASKS


VIDEO = MediaInfo("video", width=990, height=495, fps=10.0, first_frame=0, last_frame=99)
IMAGE = MediaInfo("image", width=990, height=495)


@dataclass(frozen=True)
class Asked:
    """A question: its task (None for free text), its kind of medium, and the values of its prompt as fractions."""

    task: str | None
    kind: str
    given: dict

    @property
    def span(self):
        return self.given.get("span") or ((self.given["start"], None) if "start" in self.given else None)

    def parse(self, text: str, num_temporal_bins: int = 100, num_spatial_bins: int = 100) -> dict:
        medium = VIDEO if self.kind == "video" else IMAGE
        return parse_answer(text, medium, num_temporal_bins, num_spatial_bins, **self.given, words_suffice=True)


def random_questions(count: int, seed: int) -> list[Asked]:
    """Questions of all tasks and of both kinds in free text in turn, with random spans, starts and boxes."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [*((task, TASKS[task].medium) for task in TASKS), (None, "image"), (None, "video")]
    questions = []
    for number in range(count):
        task, kind = kinds[number % len(kinds)]
        start, end = torch.rand(2, generator=generator, dtype=torch.float64).sort().values.tolist()
        given = {"tr": {"span": (start, end)}, "svg": {"span": (start, end)}, "elc": {"start": start, "box": (0.1, 0.2, 0.3, 0.4)}}
        given["reg"] = {"box": (0.1, 0.2, 0.3, 0.4)}
        questions.append(Asked(task, kind, given.get(task, {})))
    return questions


def constraint_of(processor: LlavaSTProcessor, questions: list[Asked]) -> AnswerConstraint:
    return processor.answer_constraint(
        [asked.task for asked in questions], [asked.kind for asked in questions], [asked.span for asked in questions]
    )


def walk(constraint: AnswerConstraint, limits: list[int], seed: int, symbols: list[int], spread: float = 4.0) -> list[list[int]]:
    """
    Greedy answers to random logits: of each row, a random preference for each token, and noise.

    Args:
        limits: of each answer, maximum number of tokens, end token included.
        symbols: ids of tokens that every second answer prefers, so that it has many coordinates before the limit forces them.
        spread: standard deviation of the preferences.

    Returns:
        Token ids of each answer, with its end token.
    """
    grammar, state, generator = constraint.grammar, constraint.start, torch.Generator().manual_seed(seed)
    liked = spread * torch.randn(len(limits), grammar.vocab_size, generator=generator)
    liked[::2, symbols] += 2 * spread
    ends, remaining = torch.tensor(grammar.end_token_ids), torch.tensor(limits)
    tokens: list[torch.Tensor] = []
    finished = torch.zeros(len(limits), dtype=torch.bool)
    while not finished.all():
        forbidden = grammar.mask(state, remaining.clamp(min=1))
        assert not forbidden.all(dim=-1).any(), "no token is allowed"
        logits = liked + torch.randn(liked.shape, generator=generator)
        chosen = logits.masked_fill(forbidden, -torch.inf).argmax(dim=-1)
        state, remaining = grammar.advance(state, chosen), remaining - 1
        tokens.append(chosen)
        finished |= torch.isin(chosen, ends)
    rows = torch.stack(tokens, dim=1).tolist()
    return [row[: next(place for place, token in enumerate(row) if token in grammar.end_token_ids) + 1] for row in rows]
