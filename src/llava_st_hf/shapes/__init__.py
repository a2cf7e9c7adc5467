# SPDX-License-Identifier: Apache-2.0
"""The Shapes synthetic data set, and the demo model trained on it."""
