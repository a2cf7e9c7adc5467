# SPDX-License-Identifier: Apache-2.0
"""Drafts of the next tokens of an answer, which one pass of the decoder verifies.

The text of an answer with many boxes repeats: only its coordinates change. The next tokens are found by the longest match of the last ones,
read as classes (a coordinate token is the class of its axis, any other token its own class), in what precedes: the answer so far, the usual
form of the answer, the prompt. The classes behind the match are drafted. Their coordinates are, from the best source to the worst:

1. what the previous pass predicted at this position of the answer. It saw other coordinates before it, most often wrong by a bin, so the
   prediction is rarely wrong; to predict all positions again in each pass is a Jacobi iteration, here constrained to the axis;
2. the coordinates one period earlier plus their last change.

Everything is a fixed number of tensor operations without host synchronisation.
"""

from dataclasses import dataclass

import torch

from .coordinates_llava_st import AXES, CoordinateVocabulary


CONTEXT = 4  # longest match in tokens: enough to tell the four edges of a box from each other


@dataclass
class TokenClasses:
    """
    Class, axis and bin of each token.

    Args:
        class_ids (`torch.LongTensor` of shape `(vocab_size,)`):
            The token's own id, or `vocab_size` + number of the axis for a coordinate token.
        axes (`torch.LongTensor` of shape `(vocab_size,)`):
            Number of the axis in `AXES`, or -1.
        bins (`torch.LongTensor` of shape `(vocab_size,)`):
            Bin of a coordinate token, or 0.
        first_ids, num_bins (`torch.LongTensor` of shape `(3,)`):
            Of each axis: id of the token of bin 0, and number of bins.
    """

    class_ids: torch.Tensor
    axes: torch.Tensor
    bins: torch.Tensor
    first_ids: torch.Tensor
    num_bins: torch.Tensor

    @classmethod
    def from_vocabulary(cls, vocabulary: CoordinateVocabulary, vocab_size: int, device: torch.device) -> "TokenClasses":
        class_ids = torch.arange(vocab_size)
        axes, bins = torch.full((vocab_size,), -1), torch.zeros(vocab_size, dtype=torch.long)
        ranges = [vocabulary.token_ids(axis) for axis in AXES]
        for number, ids in enumerate(ranges):
            class_ids[ids.start : ids.stop] = vocab_size + number
            axes[ids.start : ids.stop] = number
            bins[ids.start : ids.stop] = torch.arange(len(ids))
        first_ids, num_bins = torch.tensor([ids.start for ids in ranges]), torch.tensor([len(ids) for ids in ranges])
        return cls(*(table.to(device) for table in (class_ids, axes, bins, first_ids, num_bins)))


class DraftHistory:
    """
    Tokens in which drafts are found: `[prompt | template | answer]` of each row.

    Args:
        classes ([`TokenClasses`]):
            Of the model's vocabulary.
        prompt (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
            Prompt tokens.
        templates (`list[list[int]]`):
            For each row the tokens of an answer in its usual form, or an empty list.
        max_new_tokens (`int`):
            Largest number of answer tokens.
        num_drafts (`int`):
            Number of tokens to draft.
    """

    def __init__(self, classes: TokenClasses, prompt: torch.Tensor, templates: list[list[int]], max_new_tokens: int, num_drafts: int):
        batch, length = max(map(len, templates), default=0), prompt.shape[1]
        self.classes, self.prompt_end, self.answer_start = classes, length, length + batch
        rows = [[-1] * (batch - len(template)) + list(template) for template in templates]
        template_ids = torch.tensor(rows, dtype=torch.long).view(len(rows), batch).to(prompt.device)
        answer = prompt.new_full((prompt.shape[0], max_new_tokens + num_drafts + 1), -1)
        self.token_ids = torch.cat((prompt, template_ids, answer), dim=1)  # (batch, history), -1 where there is no token
        self.class_ids = self._classify(self.token_ids)  # (batch, history)
        periods = [[_period(template, classes) or 0] for template in templates]
        self.template_period = torch.tensor(periods, dtype=torch.long).to(prompt.device)  # (batch, 1), 0 for none
        self.positions = torch.arange(self.token_ids.shape[1], device=prompt.device)
        self.steps = torch.arange(num_drafts, device=prompt.device)
        self.recent = torch.arange(CONTEXT - 1, -1, -1, device=prompt.device)

    def _classify(self, token_ids: torch.Tensor) -> torch.Tensor:
        return torch.where(token_ids < 0, token_ids, self.classes.class_ids[token_ids.clamp(min=0)])

    def append(self, token_ids: torch.Tensor, lengths: torch.Tensor) -> None:
        """
        Writes answer tokens.

        Args:
            token_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`):
                Next tokens of each answer, -1 behind the last one.
            lengths (`torch.LongTensor` of shape `(batch_size, 1)`):
                Number of answer tokens before them.
        """
        at = self.answer_start + lengths + torch.arange(token_ids.shape[1], device=token_ids.device)
        self.token_ids.scatter_(1, at, token_ids)
        self.class_ids.scatter_(1, at, self._classify(token_ids))

    def draft(self, lengths: torch.Tensor, carried: torch.Tensor, num_carried: torch.Tensor) -> torch.Tensor:
        """
        Drafts the next tokens.

        Args:
            lengths (`torch.LongTensor` of shape `(batch_size, 1)`):
                Number of answer tokens so far, at least 1.
            carried (`torch.LongTensor` of shape `(batch_size, num_drafts, 3)`):
                For each of the next positions the most probable bin of each axis in the previous pass.
            num_carried (`torch.LongTensor` of shape `(batch_size, 1)`):
                Number of positions at which these are valid.

        Returns:
            `torch.LongTensor` of shape `(batch_size, num_drafts)`: token ids, -1 where nothing is drafted.
        """
        last = self.answer_start + lengths - 1  # (batch, 1) index of the last token
        matched, is_match = self._match(last)
        # Behind the end of a part the draft goes on one period earlier, so that it repeats.
        in_prompt, in_template = matched < self.prompt_end, matched < self.answer_start
        end = torch.where(in_template, self.answer_start, last + 1)
        period = torch.where(in_template, self.template_period, last - matched)
        source = matched + 1 + self.steps  # (batch, drafts)
        is_beyond = source >= end
        exists = is_match & ~(in_prompt & (source >= self.prompt_end)) & ~(is_beyond & (period == 0))
        repeats = torch.where(is_beyond, (source - end) // period.clamp(min=1) + 1, 0)
        source = source - repeats * period
        ids = self.token_ids.gather(1, source.clamp(min=0))
        exists = exists & (ids >= 0)
        ids = ids.clamp(min=0)
        earlier = (source - period).clamp(min=0)
        earlier_ids = self.token_ids.gather(1, earlier).clamp(min=0)
        axes = self.classes.axes[ids]
        changes = (earlier >= self.answer_start) & (self.classes.axes[earlier_ids] == axes)
        bins = self.classes.bins[ids]
        bins = bins + torch.where(changes, (bins - self.classes.bins[earlier_ids]) * (1 + repeats), 0)
        axis = axes.clamp(min=0)
        bins = torch.where(self.steps < num_carried, carried.gather(2, axis[..., None])[..., 0], bins)
        bins = torch.minimum(bins.clamp(min=0), self.classes.num_bins[axis] - 1)
        ids = torch.where(axes < 0, ids, self.classes.first_ids[axis] + bins)
        return torch.where(exists, ids, -1)

    def _match(self, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the index of the last token of the longest match of the classes up to `last`, and whether there is one: the latest of
        several; both of shape `(batch_size, 1)`."""
        context = self.class_ids.gather(1, (last - self.recent).clamp(min=0))  # (batch, CONTEXT)
        windows = self.class_ids.unfold(1, CONTEXT, 1)  # (batch, history - CONTEXT + 1, CONTEXT)
        equal = (windows == context[:, None]).flip(-1).cumprod(-1).sum(-1)  # number of equal tokens from the last one backwards
        ends = self.positions[CONTEXT - 1 :]
        score = torch.where(ends < last, equal * len(self.positions) + ends, -1)
        best, index = score.max(dim=1, keepdim=True)
        return index + CONTEXT - 1, best >= len(self.positions)


def _period(template: list[int], classes: TokenClasses) -> int | None:
    """Smallest number of tokens whose classes are repeated at the end of a template, such as those of a box; None if there is none."""
    class_ids = classes.class_ids[torch.tensor(template, dtype=torch.long)].tolist() if template else []
    for count in range(1, len(class_ids) // 2 + 1):
        if class_ids[-count:] == class_ids[-2 * count : -count]:
            return count
    return None
