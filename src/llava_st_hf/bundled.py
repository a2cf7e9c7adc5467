# SPDX-License-Identifier: Apache-2.0
"""The small model that comes with the package: where it is, and what to say of it."""

from pathlib import Path


BUNDLED_MODEL = Path(__file__).parent / "assets" / "shapes"
NOTICE = (
    "No model was given: this is the small one that comes with the package (3 million weights). It knows coloured shapes and nothing of "
    "the real world: see docs/bundled_model.md, and give model=… for videos of your own."
)
