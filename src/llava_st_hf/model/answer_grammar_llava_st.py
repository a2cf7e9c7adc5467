# SPDX-License-Identifier: Apache-2.0
"""Methods of the processor about the form of answers: constraints for `generate`, and drafts."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from .coordinates_llava_st import coordinate_token
from .grammar_tables_llava_st import AnswerConstraint, AnswerGrammar, first_state, make_grammar
from .tasks_llava_st import TASKS


_BOX = "".join(coordinate_token(axis, 0) for axis in ("width", "height", "width", "height"))
_TIME = coordinate_token("temporal", 0)
# Without the full stop, whose token would be that of the last bracket: drafts go on with further boxes, since answers have more than three.
_TUBELET = f"Object bounding box: {f'{_TIME}:[{_BOX}]' * 3}"
# The usual form of an answer, as in training data, with at most three boxes. Answers of the other tasks have no coordinates.
_TEMPLATES = {
    "rec": f"[{_BOX}]",
    "dgc": f"An object [{_BOX}], an object [{_BOX}] and an object [{_BOX}].",
    "tvg": f"{{{_TIME}{_TIME}}}",
    "stvg": f"During {{{_TIME}{_TIME}}}. {_TUBELET}",
    "svg": _TUBELET,
    "elc": f"Ends in {_TIME}, it moves. {_TUBELET}",
}


class AnswerGrammarMixin:
    """Adds to a processor what depends on its tokenizer and the form of answers."""

    tokenizer: PreTrainedTokenizerBase
    _grammar: tuple[int, AnswerGrammar] | None = None  # with the number of tokens that it was made for

    def answer_constraint(
        self,
        tasks: Sequence[str | None],
        media: Sequence[str | None],
        spans: Sequence[tuple[float, float | None] | None] | None = None,
        device: str | torch.device = "cpu",
    ) -> AnswerConstraint:
        """
        The argument `grammar` of `generate`, with which every answer is complete and well-formed: `parse_answer` reads it without notes.

        Args:
            tasks: of each prompt, a key of `TASKS`; None for a question in free text.
            media: "image" or "video" of each prompt, the last medium of a chat; None for a prompt without media.
            spans: `(start, end)` of each prompt as fractions of the clip, which bound the times of "svg" and "elc"; `(start, None)` where
                only the start is known, None where nothing is.
            device: of the logits.

        Returns:
            [`AnswerConstraint`]. Answers to prompts without task and media are not constrained.

        Raises:
            ValueError: naming an invalid task, a task for another kind of medium, lists of different lengths, or a tokenizer without
            coordinate tokens.
        """
        spans = [None] * len(tasks) if spans is None else spans
        if not len(tasks) == len(media) == len(spans):
            raise ValueError(f"tasks, media and spans must have one entry per prompt, got {len(tasks)}, {len(media)} and {len(spans)}.")
        rules = tuple(grammar_rule(task, medium) for task, medium in zip(tasks, media, strict=True))
        if self._grammar is None or self._grammar[0] != len(self.tokenizer):
            self._grammar = (len(self.tokenizer), make_grammar(self.tokenizer))
        grammar = self._grammar[1]
        start = [first_state(grammar.tables, rule, span) for rule, span in zip(rules, spans, strict=True)]
        return AnswerConstraint(grammar.to(device), torch.tensor(start, device=device), rules)

    def draft_template(self, task: str | None) -> list[int]:
        """
        Token ids of the usual form of an answer to a task, with three boxes where it has a box for each sampled frame, and without what
        ends it. Its bins are arbitrary.

        Args:
            task: a key of `TASKS`; None for a question in free text.

        Returns:
            `list[int]`, empty where the answer has no coordinates or the task is None.
        """
        if task is not None:
            grammar_rule(task, None if task not in TASKS else TASKS[task].medium)
        if task not in _TEMPLATES:
            return []
        return self.tokenizer(_TEMPLATES[task], add_special_tokens=False)["input_ids"]


def grammar_rule(task: str | None, medium: str | None) -> str | None:
    """The rule of `grammar_llava_st.RULES` for an answer."""
    if medium not in (None, "image", "video"):
        raise ValueError(f"media has the entry {medium!r}; it must be 'image', 'video' or None.")
    if task is None:
        return None if medium is None else f"auto_{medium}"
    if task not in TASKS:
        raise ValueError(f"task={task!r} is not a valid task; it must be one of {', '.join(TASKS)}, or None.")
    if TASKS[task].medium != medium:
        given = f"an {medium}" if medium == "image" else "a video" if medium else "neither an image nor a video"
        raise ValueError(f"The grammar {task!r} is for answers about {TASKS[task].medium}s, but the question has {given}.")
    return task
