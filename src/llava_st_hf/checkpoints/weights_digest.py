# SPDX-License-Identifier: Apache-2.0
"""A digest of the weights in a checkpoint folder, from samples of each tensor."""

import hashlib
import json
import os
from pathlib import Path


_SAMPLES, _SIZE = 16, 256  # per tensor, and bytes of each


def weights_digest(folder: str | os.PathLike) -> str:
    """
    Returns a digest of names, types, shapes and sampled values of all tensors. It does not depend on how they are distributed over files,
    and reads about 4 KB per tensor. Training changes it, unless it trains a few rows of an embedding matrix only.

    Raises:
        FileNotFoundError: if the folder has no `model*.safetensors`.
        ValueError: naming a file that is damaged.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model*.safetensors.")
    digests = {}
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            try:
                length = int.from_bytes(file.read(8), "little")
                if length > size:
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(length))
                header.pop("__metadata__", None)
                for name, entry in header.items():
                    start, end = (8 + length + offset for offset in entry["data_offsets"])
                    if end > size:
                        raise ValueError(f"the file ends before {name} does")
                    digest = hashlib.sha256(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
                    for place in range(_SAMPLES):
                        file.seek(max(start, start + (end - start - _SIZE) * place // (_SAMPLES - 1)))
                        digest.update(file.read(min(_SIZE, end - start)))
                    digests[name] = digest.hexdigest()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is damaged: {error}") from error
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
