# SPDX-License-Identifier: Apache-2.0
"""Label Studio ML back-end, which pre-annotates tracks and spans."""
