# SPDX-License-Identifier: Apache-2.0
"""Which of several trained wordings a question takes."""

import hashlib
from collections.abc import Sequence


def chosen(wordings: Sequence[str], seed: int, id: str) -> str:
    """One of `wordings`, fixed by seed and sample alone: neither the order of the file nor a part left out changes it."""
    digest = hashlib.sha256(f"{seed}:{id}".encode()).digest()
    return wordings[int.from_bytes(digest[:8], "big") % len(wordings)]
