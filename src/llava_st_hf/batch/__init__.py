# SPDX-License-Identifier: Apache-2.0
"""Batch inference: `llava-st batch`."""

from .outcomes import read_answers


__all__ = ["read_answers"]
