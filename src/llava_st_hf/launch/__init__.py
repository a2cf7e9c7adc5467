# SPDX-License-Identifier: Apache-2.0
"""Training program, recipes and configurations of accelerate, run by `llava-st train`."""
