# SPDX-License-Identifier: Apache-2.0
"""Runs `llava_st_hf.examples.three_stages` from a clone of the repository."""

from runpy import run_module


if __name__ == "__main__":
    run_module("llava_st_hf.examples.three_stages", run_name="__main__")
