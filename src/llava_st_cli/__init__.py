# SPDX-License-Identifier: Apache-2.0
"""The `llava-st` command. Its arguments are parsed without an import of torch; `llava_st_hf.cli` runs the commands."""
