# SPDX-License-Identifier: Apache-2.0
"""The web page as a Hugging Face Space. Set the variable LLAVA_ST_MODEL of the Space to a checkpoint; without it the demo model is used."""

import os

from llava_st_hf.app.command import run


run(model=os.environ.get("LLAVA_ST_MODEL"), host="0.0.0.0", port=7860)
