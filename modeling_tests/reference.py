# SPDX-License-Identifier: Apache-2.0
"""Where the reference measurements lie, and the mark of tests that need them."""

from pathlib import Path

import pytest


REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"

requires_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"the reference measurements are absent: no folder {REFERENCE}"
)
