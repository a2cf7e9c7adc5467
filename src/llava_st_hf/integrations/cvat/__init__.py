# SPDX-License-Identifier: Apache-2.0
"""CVAT agent, which pre-annotates tracks of video tasks."""
