# SPDX-License-Identifier: Apache-2.0
"""Conversations about the same medium as one row, so that training pays for the medium once."""

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
        "length": Value("int32"),  # sum over the conversations: estimated text tokens, without those of the medium
    }
)
_DIGEST_BYTES = 16
_ROWS_AT_ONCE = 4096


def pack_by_video(dataset: Dataset, max_conversations: int) -> Dataset:
    """
    Merges rows whose conversations are about the same part of the same file, and are the same up to there.

    The order is that of the first row of each group. Rows without a medium, with several, or with an answer before it stay alone.
    What comes of it is kept in the cache of `datasets`, and used again while the rows stay the same.

    Args:
        dataset: with the columns of `rows.FEATURES`.
        max_conversations: how many conversations a row has at most; of a medium with more, several rows are made.

    Returns:
        A dataset with the columns of `GROUPED_FEATURES`.

    Raises:
        ValueError: for data that is streamed or lacks a column, and for a `max_conversations` below 1.
    """
    if max_conversations < 1:
        raise ValueError(f"max_conversations={max_conversations} must be at least 1.")
    if isinstance(dataset, IterableDataset):
        raise ValueError("Questions about one medium are brought together from all over the data; this data is streamed.")
    missing = [name for name in FEATURES if name not in dataset.column_names]
    if missing:
        raise ValueError(f"Rows are grouped by their columns {', '.join(FEATURES)}; {', '.join(missing)} are not there.")
    columns = dataset.select_columns(list(FEATURES)).with_format(None)
    # The version is not read: it makes `datasets` see that this code may have changed.
    kwargs = {"dataset": columns, "max_conversations": max_conversations, "version": __version__}
    return Dataset.from_generator(_grouped_rows, features=GROUPED_FEATURES, gen_kwargs=kwargs)


def opening(messages: list[dict]) -> list[dict] | None:
    """
    What other conversations about the same medium may share with this one.

    Args:
        messages: as rows hold them.

    Returns:
        The messages up to and including the medium, and nothing behind it. None where there is no medium, where there are several, or
        where an answer comes before it, which would be learned once for all conversations that share it.
    """
    found = None
    for number, message in enumerate(messages):
        for place, item in enumerate(message["content"] if isinstance(message["content"], list) else ()):
            if item["type"] in ("image", "video"):
                if found is not None:
                    return None
                found = [*messages[:number], {**message, "content": message["content"][: place + 1]}]
    if found is None or any(message["role"] == "assistant" for message in found):
        return None
    return found


def _grouped_rows(dataset: Dataset, max_conversations: int, version: str) -> Iterator[dict]:
    order, sizes = _plan(_group_numbers(dataset), max_conversations)
    ends = sizes.cumsum()
    first = 0
    while first < len(sizes):
        begin = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + _ROWS_AT_ONCE)))  # groups in this read
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
    """(rows,) which group each row belongs to, numbered by first appearance."""
    digests = bytearray()  # millions of Python strings would outweigh the data
    for batch in dataset.select_columns("messages").iter(_ROWS_AT_ONCE):
        for messages in batch["messages"]:
            shared = opening(messages)
            key = len(digests) if shared is None else shared  # a number of its own: alone
            digests += hashlib.blake2b(json.dumps(key).encode(), digest_size=_DIGEST_BYTES).digest()
    column = pa.Array.from_buffers(pa.binary(_DIGEST_BYTES), len(dataset), [None, pa.py_buffer(digests)])
    return column.dictionary_encode().indices.to_numpy()


def _plan(groups: np.ndarray, max_conversations: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        groups: (rows,) the group of each row.
        max_conversations: rows of a group that stay together.

    Returns:
        `(order, sizes)`: (rows,) places of the rows, those of a grouped row one behind the other; and (grouped rows,) how many each has.
    """
    order = groups.argsort(kind="stable")
    counts = np.bincount(groups)
    rank = np.arange(len(groups)) - np.repeat(counts.cumsum() - counts, counts)  # (rows,) number within the group
    starts = np.flatnonzero(rank % max_conversations == 0)  # (grouped rows,)
    sizes = np.diff(starts, append=len(groups))
    by_first_row = order[starts].argsort()
    starts, sizes = starts[by_first_row], sizes[by_first_row]
    within = np.arange(len(groups)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return order[np.repeat(starts, sizes) + within], sizes
