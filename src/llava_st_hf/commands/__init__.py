# SPDX-License-Identifier: Apache-2.0
"""The commands `llava-st ground` and `llava-st chat`."""
