# SPDX-License-Identifier: Apache-2.0
"""The small model that comes with the package, and what to know of it."""

import os
from pathlib import Path


#: Folder of the bundled model, for `from_pretrained`. docs/shapes.md tells how it was made and what it reaches.
DEMO_MODEL_PATH = str(Path(__file__).resolve().parent / "weights")
DEMO_MODEL_NOTICE = (
    "This is the small model that comes with llava-st-hf: it knows moving circles, squares, triangles and crosses and nothing of the "
    "real world; give model= a LLaVA-ST checkpoint for real videos."
)


def is_demo_model(folder: str | os.PathLike) -> bool:
    """Whether a model was loaded from the folder of the bundled one."""
    return os.path.realpath(folder) == os.path.realpath(DEMO_MODEL_PATH)
