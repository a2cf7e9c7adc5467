# SPDX-License-Identifier: Apache-2.0
"""Writes the Shapes dataset: encoded videos, images, and their questions as annotation files."""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .questions import image_rows, video_rows
from .scenes import Painter, Scene, make_scene, scene_seed


@dataclass(frozen=True)
class Phase:
    """
    Data of one training phase.

    Args:
        tasks: kinds of questions (`task` of the rows; stages as in LLaVA-ST, section 3.4) → maximum number of each about one image or
            video. A phase repeats tasks of the phase before it.
        others: fraction of questions with other prompt templates than those of the tasks. These are short, and the object is named
            directly before the answer, which a small model learns faster.
        videos, images, easy_videos, easy_images: amount of each, as a `sampling_strategy`; None for none. For "easy", see `make_scene`.
    """

    tasks: dict[str, int]
    others: float
    videos: str | None = "all"
    images: str | None = "all"
    easy_videos: str | None = None
    easy_images: str | None = None


# Curriculum: questions with single-token answers come first, whose token can only be predicted from the right object. In an answer of
# four coordinates, three can be predicted from the first one, a shortcut. Boxes and spans follow.
_PLACES = {"rec": 4, "reg": 2, "dgc": 1}
_TUBELETS = {"stvg": 1, "svg": 1, "elc": 1}
_MOMENTS = {"event_at": 4, "start": 4, "middle": 2, "end": 4}
PHASES = {
    "stage1": Phase({"caption": 1}, 0.3, videos="first:30%"),
    "stage2_words": Phase({"vqa": 10}, 1.0, videos=None, images=None, easy_images="all"),
    "stage2_edges": Phase(
        {"vqa": 4, "edge": 8, "deeds": 2, **_MOMENTS}, 1.0, videos=None, images=None, easy_videos="all", easy_images="first:50%"
    ),
    "stage2": Phase(
        {**_PLACES, "vqa": 3, "vqa_at": 3, "edge": 4, "deeds": 3, "doer": 3, **_MOMENTS, "tvg": 2, "tr": 3, "box_at": 3},
        1.0,
        videos="first:50%",
        images="first:60%",
        easy_videos="all",
    ),
    # A tubelet has ten times as many tokens as other answers, and every token has the same weight: so there are many short questions.
    "stage3": Phase(
        {**_PLACES, "tvg": 3, "tr": 3, "deeds": 2, "doer": 3, **_MOMENTS, "box_at": 2, **_TUBELETS},
        0.3,
        images="first:50%",
        easy_videos="first:50%",
    ),
    # Learned last: to distinguish two or three objects and to name their events.
    "stage3_naming": Phase(
        {
            **_PLACES,
            "tvg": 2,
            "tr": 3,
            "deeds": 2,
            "doer": 3,
            "start": 2,
            "middle": 1,
            "end": 2,
            "event_at": 3,
            "box_at": 2,
            "elc_at": 5,
            **_TUBELETS,
        },
        0.3,
        images="first:25%",
    ),
}
_CHUNK = 32  # scenes that a process makes at a time
# Without macroblock-tree rate control, with which x264's AVX-512 code encodes equal frames to files that differ from run to run.
_ENCODING = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}


def write_video(scene: Scene, path: str | os.PathLike) -> None:
    """Encodes a scene as H.264 in mp4."""
    painter = Painter(scene)
    encode_video((painter.frame(number) for number in range(scene.num_frames)), scene.fps, path)


def encode_video(frames: Iterable[np.ndarray], fps: int, path: str | os.PathLike) -> None:
    """Encodes frames, (height, width, 3) uint8 with even height and width, as H.264 in mp4."""
    import av

    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=_ENCODING)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # frames are too small for several threads
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_image(scene: Scene, path: str | os.PathLike) -> None:
    """Writes the one frame of a scene as a JPEG file."""
    Image.fromarray(Painter(scene).frame(0)).save(path, quality=92)


def _make(
    number: int, folder: Path, split: str, kind: str, num_frames: int, world: int, wordings: tuple[float | None, ...], easy: bool
) -> list[list[dict]]:
    """Writes one image or video unless it exists, and returns its rows for each of `wordings`."""
    seed = scene_seed(split, number, world)
    scene = make_scene(seed, kind == "video", easy)
    name = f"{'easy-' if easy else ''}{split}-{number:06d}.{'mp4' if kind == 'video' else 'jpg'}"
    if not (folder / name).is_file():
        part = folder / f"part-{os.getpid()}-{name}"
        (write_video if kind == "video" else write_image)(scene, part)
        os.replace(part, folder / name)  # an interrupted run leaves no incomplete file under this name
    found = []
    for others in wordings:
        rng = np.random.default_rng([seed, 3])
        found.append(video_rows(scene, name, rng, num_frames, others) if kind == "video" else image_rows(scene, name, rng, others))
    return found


def make_rows(
    folder: Path,
    split: str,
    kind: str,
    count: int,
    num_frames: int,
    world: int = 0,
    first: int = 0,
    wordings: tuple[float | None, ...] = (None,),
    easy: bool = False,
) -> Iterator[list[list[dict]]]:
    """
    Writes images or videos and yields the rows of each for each of `wordings`, in order, with one process per CPU core; in this process if
    there are few.

    Args:
        folder: of the images or videos.
        split: "train", "validation" or "test".
        kind: "video" or "image".
        count: number of scenes, starting with number `first`.
        num_frames: frames that the model samples of a video.
        world: seed of the dataset: another number makes other scenes.
        wordings: `others` of `image_rows` and `video_rows`, one or more.
        easy: as of `make_scene`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_make, folder=folder, split=split, kind=kind, num_frames=num_frames, world=world, wordings=wordings, easy=easy)
    numbers = range(first, first + count)
    if count <= _CHUNK:
        yield from map(make, numbers)
        return
    with ProcessPoolExecutor() as pool:
        yield from pool.map(make, numbers, chunksize=_CHUNK)


def write_training_data(
    folder: str | os.PathLike,
    num_videos: int,
    num_images: int,
    num_easy_videos: int,
    num_easy_images: int,
    num_frames: int,
    world: int = 0,
) -> None:
    """
    Writes the training split: images and videos to `folder/media`, those of easy scenes as `easy-train-…`; and for each of `PHASES`
    annotations and a mixture, from `stage1.yaml` to `stage3_naming.yaml`.

    Args:
        folder: is created if it does not exist.
        num_videos, num_images, num_easy_videos, num_easy_images: number of scenes of each kind.
        num_frames: frames that the model samples of a video.
        world: seed of the dataset: another number makes other scenes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sources = {  # kind, number of the first scene, and count
        "videos": ("video", 0, num_videos),
        "images": ("image", 0, num_images),
        "easy_videos": ("video", num_videos, num_easy_videos),
        "easy_images": ("image", num_images, num_easy_images),
    }
    for source, (kind, first, count) in sources.items():
        phases = {name: phase for name, phase in PHASES.items() if getattr(phase, source) is not None}
        files = {name: (folder / f"{name}_{source}.jsonl").open("w", encoding="utf-8") for name in phases}
        wordings = tuple(phase.others for phase in phases.values())
        made = make_rows(folder / "media", "train", kind, count, num_frames, world, first, wordings, source.startswith("easy"))
        for found in made:
            for (name, phase), rows in zip(phases.items(), found, strict=True):
                files[name].writelines(json.dumps(row) + "\n" for row in _some(rows, phase.tasks))
        for file in files.values():
            file.close()
    for name, phase in PHASES.items():
        lines = ["datasets:"]
        for source in sources:
            if (strategy := getattr(phase, source)) is not None:
                entry = f"json_path: {name}_{source}.jsonl, data_folder: media, format: jsonl, source: shapes_{source}"
                lines.append(f"  - {{{entry}, sampling_strategy: {strategy}}}")
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _some(rows: list[dict], most: dict[str, int]) -> list[dict]:
    """Rows with at most `most[task]` of each task, chosen at random."""
    found = []
    for task, count in most.items():
        of_task = [row for row in rows if row["task"] == task]
        rng = np.random.default_rng([len(rows), len(of_task)])
        found += [of_task[place] for place in rng.permutation(len(of_task))[:count]]
    return found


def write_questions(folder: str | os.PathLike, split: str, per_task: int, num_frames: int, world: int = 0) -> None:
    """
    Writes a split to evaluate on: `folder/{task}.jsonl` with `per_task` questions for each of the eight tasks, at most one of a task about
    each image or video, and the images and videos in `folder/media`.

    Args:
        split: "validation" or "test".
        num_frames: frames that the model samples of a video.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, tasks in (("image", ("rec", "reg", "dgc")), ("video", ("tvg", "tr", "stvg", "svg", "elc"))):
        found: dict[str, list[dict]] = {task: [] for task in tasks}
        first = 0
        while min(map(len, found.values())) < per_task:
            made = make_rows(folder / "media", split, kind, per_task // 2 + 8, num_frames, world, first)
            for number, [rows] in enumerate(made, first):
                for task, chosen in found.items():
                    fitting = [row for row in rows if row["task"] == task]
                    if fitting and len(chosen) < per_task:
                        chosen.append({"id": f"{split}-{number}-{task}", **fitting[number % len(fitting)]})
                first = number + 1
        for task, chosen in found.items():
            (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")


__all__ = ["PHASES", "encode_video", "make_rows", "write_image", "write_questions", "write_training_data", "write_video"]
