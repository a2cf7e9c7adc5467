# SPDX-License-Identifier: Apache-2.0
"""Logits processor for answers that follow a grammar."""

import torch
from transformers import LogitsProcessor
from transformers.utils import logging

from .grammar_tables_llava_st import AnswerConstraint


logger = logging.get_logger(__name__)


class GrammarOfCall(LogitsProcessor):
    """Place of the grammar in the logits processors of a call of `generate`, until its limit of tokens is known."""

    def __init__(self, constraint: AnswerConstraint):
        self.constraint = constraint
        self.processor: GrammarLogitsProcessor | None = None

    def bind(self, vocab_size: int, end_token_ids: list[int], prompt_length: int, max_new_tokens: int, device) -> "GrammarLogitsProcessor":
        """The processor for a call; see [`GrammarLogitsProcessor`]."""
        constraint = self.constraint.bound_to(vocab_size, end_token_ids, device)
        self.processor = GrammarLogitsProcessor(constraint, prompt_length, max_new_tokens)
        return self.processor

    def check(self, sequences: torch.Tensor) -> None:
        """Logs a warning if (rows, length) `sequences`, prompts included where `generate` returns them, do not follow the grammar."""
        assert self.processor is not None
        answers = sequences[:, self.processor.prompt_length :]
        if rows := self.processor.constraint.off_grammar(answers):
            logger.warning(
                f"Answers {', '.join(map(str, rows))} are incomplete or do not follow the grammar: a logits processor or setting of this "
                "call, such as no_repeat_ngram_size or bad_words_ids, forbids what the grammar allows, or a stopping criterion ended them."
            )


class GrammarLogitsProcessor(LogitsProcessor):
    """
    Sets the logits of tokens that the grammar forbids to -inf. Works in every mode of `generate`, beams included.

    `generate(grammar=constraint)` of LLaVA-ST models adds it after the processors of the call.

    Args:
        constraint: of the answers, from `LlavaSTProcessor.answer_constraint`. With beams or several answers per prompt, rows of one prompt
            follow each other.
        prompt_length: number of tokens of the prompts in `input_ids`, padding included.
        max_new_tokens: number of tokens after which `generate` ends an answer; answers are complete by then.

    Raises:
        ValueError: If `max_new_tokens` is too small for an answer.
    """

    def __init__(self, constraint: AnswerConstraint, prompt_length: int, max_new_tokens: int):
        constraint.check_limit(max_new_tokens)
        self.constraint, self.prompt_length, self.max_new_tokens = constraint, prompt_length, max_new_tokens
        self._state: torch.Tensor | None = None  # (rows, columns) of the answers of the last call
        self._tokens: torch.Tensor | None = None  # (rows, length) of these answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Args:
            input_ids: (rows, prompt_length + length) prompts and answers so far.
            scores: (rows, vocab_size) logits of the next token.

        Returns:
            (rows, vocab_size).
        """
        self.constraint = self.constraint.bound_to(scores.shape[-1], None, scores.device)
        answers = input_ids[:, self.prompt_length :]
        self._state, self._tokens = self._states_of(answers), answers
        forbidden = self.constraint.grammar.mask(self._state, self.max_new_tokens - answers.shape[1])
        return scores.masked_fill(forbidden, -torch.inf)

    def _states_of(self, answers: torch.Tensor) -> torch.Tensor:
        grammar, num_prompts = self.constraint.grammar, len(self.constraint.start)
        start = self.constraint.start_of(len(answers))
        state, tokens = self._state, self._tokens
        if state is not None and tokens is not None and tokens.shape == (len(answers), answers.shape[1] - 1):
            if torch.equal(tokens, answers[:, :-1]):
                return grammar.advance(state, answers[:, -1])
            # Beams continue other beams of the same prompt.
            prompt = torch.arange(len(answers), device=answers.device) // (len(answers) // num_prompts)
            equal = (answers[:, None, :-1] == tokens).all(-1) & (prompt[:, None] == prompt)
            if equal.any(dim=1).all():
                return grammar.advance(state[equal.int().argmax(dim=1)], answers[:, -1])
        return grammar.advance_all(start, answers)[:, -1]
