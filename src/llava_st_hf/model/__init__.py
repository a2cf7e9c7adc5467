# SPDX-License-Identifier: Apache-2.0
"""Everything that travels with a checkpoint: these files import torch, transformers and one another alone."""
