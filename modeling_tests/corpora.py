# SPDX-License-Identifier: Apache-2.0
"""Small datasets of chat messages about generated videos and images."""

from pathlib import Path

from datasets import Dataset
from PIL import Image

from modeling_tests.media import moving_frames, write_video


def write_media(folder: Path) -> dict[str, str]:
    """Writes a video of two seconds and an image."""
    folder.mkdir(parents=True, exist_ok=True)
    video = write_video(folder / "clip.mp4", moving_frames(20, 48, 64), fps=10)
    image = folder / "photo.png"
    Image.fromarray(moving_frames(1, 48, 64)[0]).save(image)
    return {"video": str(video), "image": str(image)}


def row(number: int, kind: str, path: str | None, question: str, answer: str, task: str) -> dict:
    """One row, in which absent keys of an item are None, as in Arrow tables."""
    empty = dict.fromkeys(("text", "path", "clip", "start", "end"))
    medium = [] if path is None else [{**empty, "type": kind, "path": path}]
    messages = [
        {"role": "user", "content": [*medium, {**empty, "type": "text", "text": question}]},
        {"role": "assistant", "content": [{**empty, "type": "text", "text": answer}]},
    ]
    return {
        "id": str(number), "task": task, "source": "made", "modality": kind, "length": len(question + answer) // 4, "messages": messages,
    }  # fmt: skip


def mixed_rows(media: dict[str, str], count: int = 8, coordinates: bool = True) -> list[dict]:
    """Rows with a video, an image and text only in turn, of different lengths; the first and last are videos if `count` is odd."""
    rows = []
    for number in range(count):
        kind = ("video", "image", "text")[number % 3]
        share = number / count
        span, box = f"{{<t{share / 2}><t{share}>}}", f"[<w{share / 2}><h0.25><w{share}><h0.7777>]"
        if not coordinates:
            span = box = "here"
        question, answer, task = {
            "video": (f"When does thing {number} happen?", f"{span}.", "tvg"),
            "image": (f"Where is the dog {'really ' * number}?", box, "rec"),
            "text": ("Say something.", "Something." * (number + 1), "conversation"),
        }[kind]
        rows.append(row(number, kind, media.get(kind), question, answer, task))
    return rows


def mixed_dataset(folder: Path, count: int = 8, coordinates: bool = True) -> Dataset:
    return Dataset.from_list(mixed_rows(write_media(folder), count, coordinates))
