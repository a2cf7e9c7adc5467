# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of a few samples in each published format, with generated videos and images, and answers to their questions."""

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from llava_st_hf.evaluation.ground_truth import to_clip_coordinates
from llava_st_hf.evaluation.rows import Box, Question
from llava_st_hf.model.coordinates_llava_st import DEFAULT_NUM_BINS, coordinate_token, position_to_bin
from llava_st_hf.model.grounding_llava_st import MediaInfo
from modeling_tests.media import moving_frames, write_video


WIDTH, HEIGHT = 64, 48
# Fewer frames than the model samples, as many, and more, so that frames are repeated, equal and skipped.
NUM_FRAMES = (40, 100, 260)
FPS = 25


def write_json(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def _video(folder: Path, name: str, num_frames: int) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_video(path, moving_frames(num_frames, HEIGHT, WIDTH), fps=FPS)


def box_at(frame: int) -> list[float]:
    """`[x, y, width, height]` in pixels of a moving object, the same in all video miniatures."""
    return [4.0 + frame % 20, 6.5, 24.0, 20.0 + frame % 7]


def corners(box: list[float]) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height


def refcoco(folder: Path) -> tuple[str, str]:
    """Eight expressions about two images."""
    for name in ("a.png", "b.png"):
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        Image.fromarray(moving_frames(1, HEIGHT, WIDTH)[0]).save(folder / "pictures" / name)
    things = [(id, f"{'ab'[id % 2]}.png", f"thing {id}") for id in range(8)]
    images = [{"file_name": file, "height": HEIGHT, "width": WIDTH, "caption": text, "id": id} for id, file, text in things]
    annotations = [{"id": id, "bbox": box_at(3 * id)} for id, _, _ in things]
    return write_json(folder / "refcoco.json", {"images": images, "annotations": annotations}), str(folder / "pictures")


def charades_sta(folder: Path) -> tuple[str, str]:
    """Four sentences about two videos."""
    for name, num_frames in zip(("AAAAA", "BBBBB"), NUM_FRAMES, strict=False):
        _video(folder / "videos", f"{name}.mp4", num_frames)
    rows = [
        {"image_id": "AAAAA", "caption": "Person opens the door.", "timestamp": [0.125, 0.5]},
        {"image_id": "AAAAA", "caption": "person sits down.", "timestamp": [0.0, 0.3333]},
        {"image_id": "BBBBB.mp4", "caption": "person laughs", "timestamp": [0.75, 1.0]},
        {"image_id": "BBBBB.mp4", "caption": "a person puts a bag down.", "timestamp": [0.4, 0.45]},
    ]
    return write_json(folder / "charades_sta.json", rows), str(folder / "videos")


# (video, its frames, clip, event), the last three in frames, ends included.
CLIPS = [
    ("short.mp4", NUM_FRAMES[0], (0, 39), (8, 30)),
    ("even.mp4", NUM_FRAMES[1], (0, 99), (20, 61)),
    ("long.mp4", NUM_FRAMES[2], (30, 249), (47, 201)),
]
ST_ALIGN_TEXTS = {
    "stvg": ("<video>\nThe dog runs after the ball.", "During {<s>,<e>}. Object bounding box: <bboxes>."),
    "svg": ("<video>\nFrom <s> to <e>, where is the dog that runs? ", "Object bounding box: <bboxes>."),
    "elc": (
        "<video>\nStarts in <s>, what happened about the subject/object within the specified region <bbox>? ",
        "Ends in <e>, the dog runs after the ball. Object bounding box: <bboxes>.",
    ),
}


def st_align(folder: Path, task: str) -> tuple[str, str]:
    """Three clips."""
    rows = []
    for name, num_frames, (first, last), (start, end) in CLIPS:
        _video(folder / "videos", f"some/{name}", num_frames)
        asked, answered = ST_ALIGN_TEXTS[task]
        boxes = {str(frame): box_at(frame) for frame in range(start, end + 1)}
        rows.append(
            {
                "video_path": f"some/{name}",
                "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}],
                "meta": {
                    "width": WIDTH,
                    "height": HEIGHT,
                    "split": [first, last],
                    "time_token": {"<s>": start, "<e>": end},
                    "spatial_token": {"<bbox>": box_at(start), "<bboxes>": boxes},
                },
            }
        )
    return write_json(folder / f"{task}.json", rows), str(folder / "videos")


def vidstg(folder: Path) -> tuple[str, str]:
    """Three clips with a statement and a question each."""
    rows = []
    for number, (name, num_frames, (first, last), (start, end)) in enumerate(CLIPS):
        vid = f"10{number}"
        _video(folder / "videos", f"1000/{vid}.mp4", num_frames)
        things = []
        for frame in range(num_frames):
            x1, y1, x2, y2 = corners(box_at(frame))
            things.append([{"tid": 0, "bbox": {"xmin": x1, "ymin": y1, "xmax": x2, "ymax": y2}, "generated": 0, "tracker": "none"}])
        write_json(folder / "boxes" / "1000" / f"{vid}.json", {"video_id": vid, "trajectories": things})
        rows.append(
            {
                "vid": vid,
                "frame_count": num_frames,
                "fps": FPS,
                "width": WIDTH,
                "height": HEIGHT,
                "used_segment": {"begin_fid": first, "end_fid": last},
                "temporal_gt": {"begin_fid": start, "end_fid": end + 1},
                "captions": [{"description": f"the dog of {name} runs.", "target_id": 0}],
                "questions": [{"description": f"what runs in {name}?", "target_id": 0}],
            }
        )
    return write_json(folder / "test_annotations.json", rows), str(folder / "videos")


def hc_stvg(folder: Path, version: int) -> tuple[str, str]:
    """The three videos of the other miniatures, without clips."""
    rows = {}
    for name, num_frames, _, (start, end) in CLIPS:
        _video(folder / "videos", name, num_frames)
        texts = (
            {"caption": "The man turns.", "width": WIDTH, "height": HEIGHT}
            if version == 1
            else {"English": "The man turns.", "img_size": [HEIGHT, WIDTH]}
        )
        event = {"bbox": [box_at(frame) for frame in range(start, end + 1)], "st_frame": start + 1, "img_num": num_frames}
        rows[name] = {**event, **texts, "st_time": start / FPS, "ed_time": end / FPS}
    return write_json(folder / f"hc_stvg_v{version}.json", rows), str(folder / "videos")


# Name of a benchmark → (folder to write to) → (annotations, media).
MINIATURES: dict[str, Callable[[Path], tuple[str, str]]] = {
    "refcoco_val": refcoco,
    "charades_sta": charades_sta,
    "st_align_stvg": lambda folder: st_align(folder, "stvg"),
    "st_align_svg": lambda folder: st_align(folder, "svg"),
    "st_align_elc": lambda folder: st_align(folder, "elc"),
    "vidstg_declarative": vidstg,
    "vidstg_interrogative": vidstg,
    "hc_stvg_v1": lambda folder: hc_stvg(folder, 1),
    "hc_stvg_v2": lambda folder: hc_stvg(folder, 2),
}


def media_of(question: Question) -> MediaInfo:
    """`MediaInfo` of the question's image or clip; 100 frames if the annotation does not state the clip."""
    width, height = question.size or (WIDTH, HEIGHT)
    if question.kind == "image":
        return MediaInfo("image", width, height)
    first, last = question.frames or (0, 99)
    return MediaInfo("video", width, height, fps=float(FPS), first_frame=first, last_frame=last)


def in_clip(question: Question, num_frames: int = 100) -> Question:
    """Converts the ground truth of the question to the frames that a model samples."""
    return to_clip_coordinates(question, media_of(question), num_frames)


def oracle(question: Question, num_frames: int = 100) -> str:
    """Correct answer in LLaVA-ST's coordinate tokens: the bins nearest to the ground truth."""
    return shifted_oracle(question, 0, num_frames)


def shifted_oracle(question: Question, bins: int, num_frames: int = 100) -> str:
    """Answer of `oracle` with every coordinate increased by `bins` bins, clamped to the valid bins."""
    truth, media = in_clip(question, question.num_frames or num_frames).truth, media_of(question)

    def token(axis: str, position: float) -> str:
        index = position_to_bin(position, DEFAULT_NUM_BINS) + bins
        return coordinate_token(axis, min(max(index, 0), DEFAULT_NUM_BINS - 1))

    def written(box: Box) -> str:
        x1, y1, x2, y2 = box
        left, right = (token("width", x / media.width) for x in (x1, x2))
        top, bottom = (token("height", y / media.height) for y in (y1, y2))
        return f"[{left}{top}{right}{bottom}]"

    length = max(media.last_frame - media.first_frame, 1)
    moments = "".join(
        f"{token('temporal', (frame - media.first_frame) / length)}:{written(box)}" for frame, box in (truth.tubelet or {}).items()
    )
    tubelet = f"Object bounding box: {moments}."
    if question.task == "rec":
        assert truth.box is not None
        return written(truth.box)
    if question.task == "svg":
        return tubelet
    assert truth.span is not None
    start, end = (token("temporal", position) for position in truth.span)
    if question.task == "tvg":
        return f"{{{start}{end}}}"
    return f"During {{{start}{end}}}. {tubelet}" if question.task == "stvg" else f"Ends in {end}, {truth.caption}. {tubelet}"


def empty_oracle(question: Question, num_frames: int = 100) -> str:
    """An empty answer."""
    return ""
