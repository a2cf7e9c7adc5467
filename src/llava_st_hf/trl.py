# SPDX-License-Identifier: Apache-2.0
"""
Runs a training script of TRL in a process that has imported this package, so that TRL finds the classes of LLaVA-ST.

    python -m llava_st_hf.trl sft --config recipe.yaml
    accelerate launch --num_processes 2 -m llava_st_hf.trl dpo --config recipe.yaml

Arguments and recipes are those of `trl sft`, `trl dpo` and `trl grpo`, without the arguments of accelerate, which go before `-m`. The
script `grpo` uses `LlavaSTGRPOTrainer`: TRL's own trainer ignores videos.
"""

import runpy
import sys

import trl

from .training import LlavaSTGRPOTrainer


SCRIPTS = ("sft", "dpo", "grpo")


def main(arguments: list[str]) -> None:
    """
    Runs a script.

    Args:
        arguments: name of the script, one of `SCRIPTS`, and its arguments.

    Raises:
        SystemExit: naming the scripts, if the first argument is none of them.
    """
    if not arguments or arguments[0] not in SCRIPTS:
        found = f"got {arguments[0]!r}" if arguments else "got none"
        raise SystemExit(f"The first argument of python -m llava_st_hf.trl must be one of {', '.join(SCRIPTS)}, {found}.")
    before = sys.argv, trl.GRPOTrainer
    sys.argv, trl.GRPOTrainer = [f"trl {arguments[0]}", *arguments[1:]], LlavaSTGRPOTrainer
    try:
        runpy.run_module(f"trl.scripts.{arguments[0]}", run_name="__main__")
    finally:
        sys.argv, trl.GRPOTrainer = before


if __name__ == "__main__":
    main(sys.argv[1:])
