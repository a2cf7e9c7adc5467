# SPDX-License-Identifier: Apache-2.0
"""Presence: the probability that the event in a span is the one that a question describes.

The model answers every question with a span, also where the event does not occur. Whether it does is decided from the same weights, by two
values: the agreement, which is the mean probability of the tokens of the description as the answer to the question of task "tr" about the
span; and the score of the span. A calibration weights both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from .cache_name_llava_st import CACHE_NAME
from .checks_llava_st import is_finite_number
from .shared_media_llava_st import KeptPrefix, PromptPrefix, join_prompts, prompts_for_generate


@dataclass(frozen=True)
class PresenceCalibration:
    """
    Weights of the presence, `sigmoid(text · logit(agreement) + span · logit(span_score) + offset)`, and the threshold. By default the
    presence is the agreement, which is not calibrated.

    Args:
        text: weight of the agreement; above 0.
        span: weight of the score of the span; at least 0.
        offset: constant.
        threshold: presence below which an event counts as absent, between 0 and 1.
    """

    text: float = 1.0
    span: float = 0.0
    offset: float = 0.0
    threshold: float = 0.5

    def presence(self, agreement: float, span_score: float | None) -> float:
        """The presence for the agreement and the expected temporal IoU of the span; without a score, 0.5 counts as the score."""
        values = (self.text, agreement), (self.span, 0.5 if span_score is None else span_score)
        logit = self.offset + sum(weight * _logit(value) for weight, value in values)
        return round(1 / (1 + math.exp(-logit)), 4)


def _logit(probability: float) -> float:
    probability = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(probability / (1 - probability))


def check_presence_calibration(calibration) -> PresenceCalibration:
    """
    Checks `presence_calibration` of a generation configuration.

    Args:
        calibration: a dictionary with any of the arguments of [`PresenceCalibration`]; None for the default.

    Raises:
        ValueError: naming the value.
    """
    if isinstance(calibration, PresenceCalibration) or calibration is None:
        return calibration or PresenceCalibration()
    names = [field.name for field in fields(PresenceCalibration)]
    valid = isinstance(calibration, dict) and set(calibration) <= set(names) and all(map(is_finite_number, calibration.values()))
    values = {name: float(value) for name, value in calibration.items()} if valid else {}
    if not valid or values.get("text", 1.0) <= 0 or values.get("span", 0.0) < 0 or not 0 <= values.get("threshold", 0.5) <= 1:
        raise ValueError(
            f"presence_calibration must map some of {', '.join(names)} to numbers, with text above 0, span at least 0 and threshold from "
            f"0 to 1; got {calibration!r}."
        )
    return PresenceCalibration(**values)


def set_presence_calibration(generation_config, calibration: dict | None) -> None:
    """
    Stores the calibration of the presence in the generation configuration of a checkpoint, in place; None removes it.

    It is valid for the weights that it was fitted to: training and merging of adapters remove it.

    Raises:
        ValueError: as `check_presence_calibration`.
    """
    if calibration is None:
        vars(generation_config).pop("presence_calibration", None)
        return
    checked = check_presence_calibration(calibration)
    generation_config.presence_calibration = {field.name: getattr(checked, field.name) for field in fields(checked)}
    # transformers drops such a value when it loads a file that is marked as derived from the model's configuration.
    generation_config._from_model_config = False


def as_answer(text: str) -> str:
    """A description in the form of an answer: with a capital at the start and a full stop at the end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


@torch.no_grad()
def token_probabilities(
    model, samples: Sequence[dict[str, torch.Tensor]], prefixes: Sequence[PromptPrefix], answers: Sequence[torch.Tensor], kept: KeptPrefix
) -> list[torch.Tensor]:
    """
    Computes the probabilities of the tokens of given answers to several prompts, in one pass of the decoder.

    Args:
        model: [`LlavaSTForConditionalGeneration`].
        samples: outputs of the processor for the prompts.
        prefixes: of the prompts; `kept` has the states of each.
        answers: (num_tokens,) token ids of each answer.
        kept: states of the prefixes.

    Returns:
        (num_tokens,) float32 on the CPU, for each prompt.
    """
    rows = []
    for sample, answer in zip(samples, answers, strict=True):
        row = {"input_ids": torch.cat((sample["input_ids"].flatten(), answer))}
        if "coordinate_values" in sample:
            exact = sample["coordinate_values"].flatten()
            row["coordinate_values"] = torch.cat((exact, exact.new_full(answer.shape, float("nan"))))
        rows.append(row)
    inputs = {name: tensor.to(model.device) for name, tensor in join_prompts(rows, list(prefixes), 0).items()}
    inputs = prompts_for_generate(model, inputs, list(prefixes), kept)
    cache, mask = inputs[CACHE_NAME], inputs["attention_mask"]
    length, longest = cache.get_seq_length(), max(map(len, answers))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` counts them
    new = {name: tensor[:, length:] for name, tensor in inputs.items() if name in ("input_ids", "coordinate_values")}
    output = model(
        **new, attention_mask=mask, position_ids=positions[:, length:], logits_to_keep=longest + 1, use_cache=True, **{CACHE_NAME: cache}
    )
    probabilities = output.logits[:, :-1].float().softmax(-1)  # (batch, longest, vocab): of the last `longest` tokens
    chosen = probabilities.gather(2, new["input_ids"][:, -longest:, None])[..., 0].cpu()  # (batch, longest)
    return [row[longest - len(answer) :] for row, answer in zip(chosen, answers, strict=True)]


__all__ = ["PresenceCalibration", "as_answer", "check_presence_calibration", "set_presence_calibration", "token_probabilities"]
