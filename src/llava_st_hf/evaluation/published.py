# SPDX-License-Identifier: Apache-2.0
"""Published metrics of LLaVA-ST by benchmark, in the names and scales of `score`: means as fractions, recalls as percentages.

Source: arXiv:2501.08282 and the results table of the original repository, for LLaVA-ST-Qwen2-7B, computed under the original protocol.
"""

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
