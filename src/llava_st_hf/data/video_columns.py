# SPDX-License-Identifier: Apache-2.0
"""Moves videos of a column into the chat messages: TRL's collators hand a column of images over to the processor, but none of videos."""

from datasets import Dataset, IterableDataset


_MESSAGES = ("messages", "prompt")  # columns of chat messages that may have media; answers have none


def fill_videos(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    Moves the videos of the column `videos` into the messages of the column `messages` or `prompt`.

    The items `{"type": "video"}` without a source get them in order. If the content of the first user message is a string, they are
    inserted before it. The result has no column `videos`, and a column `images`, of empty lists if there was none: TRL processes images
    and videos in the data collator only if a dataset has it.

    Args:
        dataset: with a column `videos`: for each row a list of paths or URLs, or of `{"path": …}` as `datasets.Video(decode=False)` gives.

    Returns:
        The dataset with the videos in its messages.

    Raises:
        ValueError: if a column is missing, or the videos of a row do not fit its messages; while iterating for a streamed dataset.
    """
    columns = list(dataset.column_names or next(iter(dataset)))
    names = [name for name in _MESSAGES if name in columns]
    if "videos" not in columns or not names:
        raise ValueError(f"The dataset has the columns {', '.join(columns)}; it must have videos, and messages or prompt.")

    def fill(messages: list[dict], videos: list | None) -> dict:
        filled = _fill_messages(messages, [_path_of(video) for video in videos or ()])
        return {names[0]: filled, **({} if "images" in columns else {"images": []})}

    return dataset.map(fill, input_columns=[names[0], "videos"], remove_columns=[names[0], "videos"])


def _path_of(video) -> str:
    path = video.get("path") if isinstance(video, dict) else video
    if not isinstance(path, str) or (isinstance(video, dict) and video.get("bytes") is not None):
        raise ValueError(
            f"A video of the column videos must be a path or URL, got {video!r:.200}. Decoded videos: "
            'dataset.cast_column("videos", [datasets.Video(decode=False)]).'
        )
    return path


def _fill_messages(messages: list[dict], paths: list[str]) -> list[dict]:
    remaining = list(paths)
    filled: list[dict] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
            if message["role"] == "user" and remaining and not any(row["role"] == "user" for row in filled):
                content = [*({"type": "video", "path": path} for path in remaining), *content]
                remaining = []
        else:
            items = []
            for item in content:
                if item["type"] == "video" and not any(item.get(name) for name in ("video", "path", "url")):
                    if not remaining:
                        raise ValueError(f"The messages have more video items without a source than the row has videos ({len(paths)}).")
                    item = {**item, "path": remaining.pop(0)}
                items.append(item)
            content = items
        filled.append({**message, "content": content})
    if remaining:
        raise ValueError(
            f"The row has {len(paths)} videos, but its messages have {len(paths) - len(remaining)} video items without a source."
        )
    return filled
