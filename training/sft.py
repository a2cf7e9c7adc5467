# SPDX-License-Identifier: Apache-2.0
"""Starts `llava_st_hf.launch.sft` from a clone of the repository, for commands that name this file. Elsewhere use `llava-st train`.

accelerate launch --config_file training/accelerate/ddp.yaml training/sft.py --config training/recipes/finetune_lora.yaml
"""

from llava_st_hf.launch.sft import run


if __name__ == "__main__":
    run()
