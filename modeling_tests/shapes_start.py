# SPDX-License-Identifier: Apache-2.0
"""The demo model as it is initialized, before any training (training/shapes/start.py)."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training/shapes"))

import initialization
import start


def write_stage2(folder: Path) -> Path:
    """Writes an untrained model with coordinate tokens, as stage 2 expects it; returns its folder."""
    tokenizer = start.build_tokenizer([])
    start.build_model(tokenizer).save_pretrained(folder / "start")
    start.build_processor(tokenizer).save_pretrained(folder / "start")
    initialization.init_coordinate_embeddings(folder / "start", folder / "rows")
    return folder / "rows"
