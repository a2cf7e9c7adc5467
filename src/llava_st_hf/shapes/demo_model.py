# SPDX-License-Identifier: Apache-2.0
"""The folder of the demo model, and the notice that its users see."""

import os


#: Checkpoint folder of the demo model, for `from_pretrained`. docs/shapes.md: how it was trained, and its metrics.
DEMO_MODEL_PATH = os.path.join(os.path.dirname(os.path.realpath(__file__)), "weights")
#: What `model_name_or_path` of a recipe names it by, on every machine.
DEMO_MODEL_NAME = "llava-st-hf-demo"
DEMO_MODEL_NOTICE = (
    "This is the demo model of llava-st-hf, trained on synthetic videos of moving circles, squares, triangles and crosses only. Its "
    "results on real videos are meaningless; pass model= a LLaVA-ST checkpoint for those."
)
