# SPDX-License-Identifier: Apache-2.0
"""Published metrics of LLaVA-ST and other models by benchmark, in the names and scales of `score`: means as fractions, recalls as
percentages.

Source of `PUBLISHED` and `PUBLISHED_OTHERS`: arXiv:2501.08282 and the results table of the original repository, for LLaVA-ST-Qwen2-7B,
computed under the original protocol. `PUBLISHED_LATER` has the source of each row.
"""

from typing import NamedTuple


SOURCE = "arXiv:2501.08282 and the results table of the original repository"
MODEL = "LLaVA-ST-Qwen2-7B"

PUBLISHED: dict[str, dict[str, float]] = {
    "st_align_stvg": {"tiou@0.5": 44.6, "m_tiou": 0.438, "siou@0.5": 21.1, "m_siou": 0.228},
    "st_align_elc": {"tiou@0.5": 60.4, "m_tiou": 0.600, "siou@0.5": 32.4, "m_siou": 0.335, "METEOR": 0.247},
    "st_align_svg": {"siou@0.3": 47.2, "siou@0.5": 30.9, "m_siou": 0.325},
    "charades_sta": {"R1@0.3": 63.1, "R1@0.5": 44.8, "R1@0.7": 23.4, "miou": 0.424},
    "refcoco_val": {"R1@0.5": 90.1},
    "refcoco_testA": {"R1@0.5": 93.2},
    "refcoco_testB": {"R1@0.5": 85.0},
    "refcoco+_val": {"R1@0.5": 86.0},
    "refcoco+_testA": {"R1@0.5": 91.3},
    "refcoco+_testB": {"R1@0.5": 78.8},
    "refcocog_val": {"R1@0.5": 86.7},
    "refcocog_test": {"R1@0.5": 87.4},
}

# Other models on ST-Align, from the same source.
PUBLISHED_OTHERS: dict[str, dict[str, dict[str, float]]] = {
    "GroundingGPT": {
        "st_align_stvg": {"tiou@0.5": 7.1, "m_tiou": 0.122, "siou@0.5": 2.9, "m_siou": 0.092},
        "st_align_svg": {"siou@0.3": 19.7, "siou@0.5": 5.4, "m_siou": 0.179},
    },
    "VTimeLLM": {"st_align_stvg": {"tiou@0.5": 7.1, "m_tiou": 0.155}},
    "Grounded-VideoLLM": {"st_align_stvg": {"tiou@0.5": 30.0, "m_tiou": 0.330}},
}


_STVG_R1 = "STVG-R1: Incentivizing Instance-Level Reasoning and Grounding in Videos via Reinforcement Learning, arXiv:2602.11730"
_SARL_STG = (
    "SARL-STG: A Spatially Aware Reinforcement Learning Framework for Refining MLLMs in Spatio-Temporal Video Grounding, CVPR 2026, "
    "pages 24630–24639"
)


class LaterResult(NamedTuple):
    """Metrics of a model from a paper that appeared after LLaVA-ST's, under the protocol of that paper.

    Args:
        source: the paper.
        benchmark: a key of `PUBLISHED`.
        metrics: as in `PUBLISHED`.
    """

    source: str
    benchmark: str
    metrics: dict[str, float]


# By model. The paper of LLaVA-ST has no m_viou; STVG-R1 and Qwen2.5-VL have no m_siou. One later paper prints 22.8, the m_siou of LLaVA-ST,
# in a column of m_viou.
PUBLISHED_LATER: dict[str, LaterResult] = {
    "SARL-STG": LaterResult(_SARL_STG, "st_align_stvg", {"m_tiou": 0.495, "m_siou": 0.404, "m_viou": 0.266}),
    "STVG-R1": LaterResult(_STVG_R1, "st_align_stvg", {"m_tiou": 0.451, "m_viou": 0.234}),
    "Qwen2.5-VL-7B": LaterResult(_STVG_R1, "st_align_stvg", {"m_tiou": 0.374, "m_viou": 0.143}),
    f"{MODEL} (later papers)": LaterResult("later comparisons", "st_align_stvg", {"m_viou": 0.135}),
}

# Fields of `EvaluationSettings` with which the original program generated the published results. It asked one question at a time.
PUBLISHED_SETTINGS = {"dtype": "float16", "temperature": 0.01, "max_new_tokens": 1024, "prompt_decimals": 3}
