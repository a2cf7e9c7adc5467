# SPDX-License-Identifier: Apache-2.0
"""The version, apart, so that building the package imports nothing."""

__version__ = "0.2.0"
