# SPDX-License-Identifier: Apache-2.0
"""Plug-in for vLLM, found by the entry point group `vllm.general_plugins`."""
