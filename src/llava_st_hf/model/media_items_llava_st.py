# SPDX-License-Identifier: Apache-2.0
"""Image and video items of chat messages: checks of their keys, and conversion to arguments of the processors."""

import base64
import binascii

from .checks_llava_st import check_rate
from .video_frames_llava_st import flatten_videos, is_frames
from .video_sampling_llava_st import check_num_frames


IMAGE_KEYS = ("image", "url", "path", "base64")
_VIDEO_SOURCES = ("video", "url", "path")
VIDEO_KEYS = (*_VIDEO_SOURCES, "clip", "start", "end", "video_start", "video_end", "nframes", "fps", "sample_fps", "timestamps")
# Keys that processors of other models accept, and the reason for the error here.
_FIXED_SIZE = "images and frames are always resized to the fixed square of the model"
_NO_MEANING = {
    **dict.fromkeys(("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"), _FIXED_SIZE),
    **dict.fromkeys(("min_frames", "max_frames"), "the number of sampled frames is given by nframes"),
}


def check_keys(item: dict, keys: tuple[str, ...], what: str) -> None:
    """Raises `ValueError`, naming them, for keys that are not in `keys`; `what` is the kind of item, for the message."""
    unknown = [key for key in item if key not in keys]
    for key in unknown:
        if key in _NO_MEANING:
            raise ValueError(f"{what} cannot have {key!r} ({item[key]!r}): {_NO_MEANING[key]}.")
    if unknown:
        raise ValueError(f"{what} has no {', '.join(map(repr, unknown))}; its keys are {', '.join(keys)}. Got {item!r:.200}.")


def as_own_item(item: dict) -> dict:
    """Converts OpenAI's items `{"type": "image_url", "image_url": {"url": …}}` and `video_url` to items of type image or video."""
    if item["type"] not in ("image_url", "video_url"):
        return item
    name = item["type"]
    source = item.get(name)
    if isinstance(source, dict):
        source = {key: value for key, value in source.items() if value is not None}
        if source.get("detail") == "auto":
            del source["detail"]
        elif "detail" in source:
            raise ValueError(f"{name} cannot have detail={source['detail']!r}: {_FIXED_SIZE}.")
        check_keys(source, ("url",), f"{name!r} of a content item")
        source = source.get("url")
    if not isinstance(source, str):
        raise ValueError(f'A content item of type {name!r} has {name!r}: a URL or {{"url": …}}; got {item!r:.200}.')
    return {**{key: value for key, value in item.items() if key != name}, "type": name.removesuffix("_url"), "url": source}


def prepare_image(item: dict) -> dict:
    """Checks an image item and converts its source to one that the image processor accepts."""
    check_keys(item, ("type", *IMAGE_KEYS), "A content item of type 'image'")
    _source(item, IMAGE_KEYS)
    if "base64" not in item:
        return item
    encoded = item["base64"]
    if isinstance(encoded, str) and encoded.startswith("data:"):
        return {"type": "image", "image": encoded}
    try:
        return {"type": "image", "image": base64.b64decode(encoded)}
    except (TypeError, binascii.Error, ValueError) as error:
        raise ValueError(f"'base64' of an image is not base64: {encoded!r:.100} ({error}).") from error


def prepare_video(item: dict) -> tuple[dict, dict]:
    """
    Checks a video item and separates its source from its other keys.

    Returns:
        `(item, options)`: the options are the entries of this video in `clips`, `sampling` (number of frames) and `video_metadata`
        (times of frames) of the video processor; None for those that the item does not contain.

    Raises:
        ValueError: naming a key that is unknown, has no meaning for this source, or has the same meaning as another key of the item.
    """
    check_keys(item, ("type", *VIDEO_KEYS), "A content item of type 'video'")
    source = _source(item, _VIDEO_SOURCES)
    options = {"clips": _clip(item), "sampling": None, "video_metadata": None}
    if "nframes" in item:
        check_num_frames(item["nframes"], "nframes of a video")
        options["sampling"] = {"num_frames": item["nframes"]}
    given = [name for name in ("fps", "sample_fps", "timestamps") if name in item]
    if given:
        if source is None:
            raise ValueError(f"{', '.join(given)} of a video item need the video in the item; got {item!r:.200}.")
        videos = flatten_videos(source)
        if len(videos) != 1:
            raise ValueError(f"A video item has one video; got {len(videos)} in {item!r:.200}.")
        options |= _times_of_frames(item, given) if is_frames(videos[0]) else _rate_of_file(item, given)
    return {key: value for key, value in item.items() if key in ("type", *_VIDEO_SOURCES)}, options


def _times_of_frames(item: dict, given: list[str]) -> dict:
    """Options for a list of frames, for which `fps` and `sample_fps` are the frames displayed per second."""
    if len(given) > 1:
        raise ValueError(f"The times of frames must be given once, as fps, sample_fps or timestamps; got {', '.join(given)}.")
    (name,) = given
    if name == "timestamps":
        return {"video_metadata": {"frame_times": item["timestamps"]}}
    check_rate(item[name], f"{name} of a video")
    return {"video_metadata": {"fps": item[name]}}


def _rate_of_file(item: dict, given: list[str]) -> dict:
    """Options for a video file, which contains its own times: `fps` is the number of frames sampled per second."""
    for name in ("sample_fps", "timestamps"):
        if name in given:
            raise ValueError(
                f"{name}={item[name]!r:.100} can only be given for a list or folder of frames; a video file has its own times. "
                "For a file, fps is the number of frames sampled per second."
            )
    if "nframes" in item:
        raise ValueError(f"A video file is sampled at nframes={item['nframes']!r} or at fps={item['fps']!r} frames per second, not both.")
    check_rate(item["fps"], "fps of a video")
    return {"sampling": {"fps": item["fps"]}}


def _source(item: dict, keys: tuple[str, ...]):
    """Value of one of `keys`; `None` for a placeholder, whose image or video is passed in addition to the messages."""
    given = [key for key in keys if key in item]
    if len(given) > 1:
        raise ValueError(f"A content item has one source; this one has {' and '.join(map(repr, given))}: {item!r:.200}.")
    return item[given[0]] if given else None


def _clip(item: dict) -> dict | None:
    """Clip of a video item, in the format of the video processor."""
    seconds = {}
    for name in ("start", "end"):
        if name in item and f"video_{name}" in item:
            raise ValueError(f"{name}={item[name]!r} and video_{name}={item[f'video_{name}']!r} mean the same; give one of them.")
        for key in (name, f"video_{name}"):
            if key in item:
                seconds[name] = item[key]
    if "clip" not in item:
        return seconds or None
    if seconds:
        raise ValueError(f"A video's clip is given as frames (clip={item['clip']!r}) or as seconds (start, end), not both.")
    return {"frames": item["clip"]}
