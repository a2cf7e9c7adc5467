# SPDX-License-Identifier: Apache-2.0
"""Servers of a checkpoint with OpenAI's API: `llava-st serve` on vLLM, and a launcher of `transformers serve`."""
