# SPDX-License-Identifier: Apache-2.0
"""Tasks for lmms-eval's `--include_path`: VidSTG, HC-STVG and ST-Align, from files of the user's own."""
