# SPDX-License-Identifier: Apache-2.0
"""Packs conversations about the same image or video into one row, so that training encodes its tokens once."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value

from ..version import __version__
from .rows import FEATURES


GROUPED_FEATURES = Features(
    {
        "conversations": [FEATURES["messages"]],  # the `messages` of the rows
        "ids": [Value("string")],  # one per conversation, as are the tasks
        "tasks": [Value("string")],
        "source": Value("string"),  # of all of them, with commas where there are several
        "modality": Value("string"),
        "length": Value("int32"),  # sum over the conversations: estimated text tokens, without those of the image or video
    }
)
_COLUMNS = [name for name in FEATURES if name != "images"]
_DIGEST_BYTES = 16
_ROWS_AT_ONCE = 4096


def pack_by_video(dataset: Dataset, max_conversations: int) -> Dataset:
    """
    Merges rows whose conversations have the same beginning up to and including the same clip or image.

    Groups are in the order of their first rows. Rows without an image or video, with several, or with an answer before it are not
    merged. The result is stored in the cache of `datasets`, and used again while the rows stay the same.

    Args:
        dataset: with the columns of `rows.FEATURES`; `images` is not read.
        max_conversations: maximum number of conversations of a row; a larger group becomes several rows.

    Returns:
        A dataset with the columns of `GROUPED_FEATURES`.

    Raises:
        ValueError: for a streamed dataset, a missing column, or a `max_conversations` below 1.
    """
    if max_conversations < 1:
        raise ValueError(f"max_conversations={max_conversations} must be at least 1.")
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "pack_by_video reads the whole dataset first, which is not possible while streaming: load it with streaming=False."
        )
    missing = [name for name in _COLUMNS if name not in dataset.column_names]
    if missing:
        raise ValueError(f"The dataset lacks the columns {', '.join(missing)}; pack_by_video needs {', '.join(_COLUMNS)}.")
    columns = dataset.select_columns(_COLUMNS).with_format(None)
    # The version is not used: `datasets` hashes it, and so packs again with a new version of this code.
    kwargs = {"dataset": columns, "max_conversations": max_conversations, "version": __version__}
    return Dataset.from_generator(_grouped_rows, features=GROUPED_FEATURES, gen_kwargs=kwargs)


def opening(messages: list[dict]) -> list[dict] | None:
    """
    The beginning of a conversation that others about the same image or video may share.

    Args:
        messages: of a row.

    Returns:
        The messages up to and including the image or video. None if there is no image or video, if there are several, or if an answer
        comes before it, whose loss would be counted once for all conversations that share it.
    """
    found = None
    for number, message in enumerate(messages):
        for index, item in enumerate(message["content"] if isinstance(message["content"], list) else ()):
            if item["type"] in ("image", "video"):
                if found is not None:
                    return None
                found = [*messages[:number], {**message, "content": message["content"][: index + 1]}]
    if found is None or any(message["role"] == "assistant" for message in found):
        return None
    return found


def _grouped_rows(dataset: Dataset, max_conversations: int, version: str) -> Iterator[dict]:
    order, sizes = _plan(_group_numbers(dataset), max_conversations)
    ends = sizes.cumsum()
    first = 0
    while first < len(sizes):
        begin = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + _ROWS_AT_ONCE)))  # groups read at once
        rows = dataset[order[begin : ends[last - 1]].tolist()]
        for number in range(first, last):
            group = slice(ends[number] - sizes[number] - begin, ends[number] - begin)
            yield {
                "conversations": rows["messages"][group],
                "ids": rows["id"][group],
                "tasks": rows["task"][group],
                "source": ", ".join(dict.fromkeys(source or "the data" for source in rows["source"][group])),
                "modality": rows["modality"][group][0],
                "length": sum(rows["length"][group]),
            }
        first = last


def _group_numbers(dataset: Dataset) -> np.ndarray:
    """(rows,) group of each row, numbered by first appearance."""
    digests = bytearray()  # millions of Python strings would take more memory than the data
    for batch in dataset.select_columns("messages").iter(_ROWS_AT_ONCE):
        for messages in batch["messages"]:
            shared = opening(messages)
            key = len(digests) if shared is None else shared  # a unique key: not merged
            digests += hashlib.blake2b(json.dumps(key).encode(), digest_size=_DIGEST_BYTES).digest()
    column = pa.Array.from_buffers(pa.binary(_DIGEST_BYTES), len(dataset), [None, pa.py_buffer(digests)])
    return column.dictionary_encode().indices.to_numpy()


def _plan(groups: np.ndarray, max_conversations: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        groups: (rows,) the group of each row.
        max_conversations: maximum number of rows merged into one.

    Returns:
        `(order, sizes)`: (rows,) indices of the rows, those merged into one next to each other; and (merged rows,) the number of rows of
        each.
    """
    order = groups.argsort(kind="stable")
    counts = np.bincount(groups)
    rank = np.arange(len(groups)) - np.repeat(counts.cumsum() - counts, counts)  # (rows,) number within the group
    starts = np.flatnonzero(rank % max_conversations == 0)  # (merged rows,)
    sizes = np.diff(starts, append=len(groups))
    by_first_row = order[starts].argsort()
    starts, sizes = starts[by_first_row], sizes[by_first_row]
    offsets = np.arange(len(groups)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return order[np.repeat(starts, sizes) + offsets], sizes
