# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: atomic writes, conversion of the original layout, adapters, and the stage-1 model."""
