# SPDX-License-Identifier: Apache-2.0
"""Tests that need vLLM: `make test-serve` runs them in an environment of their own."""
