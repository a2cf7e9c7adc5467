# SPDX-License-Identifier: Apache-2.0
"""Reading of videos from files or frames."""

from collections.abc import Callable

from .downloads_llava_st import DownloadLimits, checked_limits
from .video_decoding_llava_st import Result, check_backend, read_video_file
from .video_frames_llava_st import FramesReader, flatten_videos, is_frames
from .video_metadata_llava_st import LlavaSTVideoMetadata


def check_allow_truncated(allow_truncated: bool | None) -> None:
    """Raises `ValueError` unless it is True, False or None."""
    if allow_truncated is not None and not isinstance(allow_truncated, bool):
        raise ValueError(f"allow_truncated must be True or False, got {allow_truncated!r}")


def read_video(
    source,
    read: Callable[..., Result],
    video_backend: str | None = None,
    allow_truncated: bool = False,
    download_limits: DownloadLimits | None = None,
) -> Result:
    """
    Opens a video and returns the result of `read` for its reader. `read` may be called twice, see `read_video_file`.

    Args:
        source: one video: a file (path, URL, `data:` URL, bytes, open file), a folder of image files, an array or a list of frames.
        read: function of a reader, which has `metadata` and `chunks(indices)`. Chunks are `(chunk_frames, height, width, 3)` for files
            and `(chunk_frames, channels, height, width)` for frames. The frame rate of frames is unknown.
        video_backend, allow_truncated: for files, see `open_video_file`.
        download_limits: limits of a download; `None` for the default limits.

    Raises:
        OSError: naming the file, if it is not a video, has no video stream, is damaged, or is truncated and `allow_truncated` is not set.
        ValueError: for an argument that is none of these, for several videos, or frames that are not images.
        ImportError: if the backend is not installed.
    """
    check_backend(video_backend)
    check_allow_truncated(allow_truncated)
    checked_limits(download_limits)
    videos = flatten_videos(source)
    if len(videos) != 1:
        raise ValueError(f"one video is read at a time; got {len(videos)}")
    (video,) = videos
    if not is_frames(video):
        return read_video_file(video, read, video_backend, allow_truncated, download_limits)
    return read(
        FramesReader(
            video,
            metadata=None,
            do_convert_rgb=True,
            input_data_format=None,
            do_rescale=None,
            rescale_factor=1 / 255,
            download_limits=download_limits,
        )
    )


def read_video_metadata(
    source, video_backend: str | None = None, allow_truncated: bool = False, download_limits: DownloadLimits | None = None
) -> LlavaSTVideoMetadata:
    """
    Reads the metadata of a video without decoding all of it: `total_num_frames`, `fps`, `duration` and `start_time` in seconds, and
    `height` and `width` in pixels as displayed (after rotation), for which the first frame is decoded. If the frame rate
    varies, `frame_times` contains the seconds of every frame and `fps` is the mean rate. `frames_indices` is `None`. For a folder of
    image files and for other frames, whose rate is unknown, `fps` and `duration` are `None`.

    Args:
        source: one video: a file (path, URL, `data:` URL, bytes, open file), a folder of image files, an array or a list of frames.
        video_backend: video decoder, `"pyav"` (also for `None`) or `"decord"`.
        allow_truncated: read a truncated file up to its end; `notes` then states it.
        download_limits: limits of a download; `None` for the default limits.

    Raises:
        OSError: naming the file, if it is not a video, has no video stream, is damaged, or is truncated and `allow_truncated` is not set.
        ValueError: for an argument that is none of these, for several videos, or frames that are not images.
        ImportError: if the backend is not installed.
    """

    def metadata(reader) -> LlavaSTVideoMetadata:
        next(iter(reader.chunks([0])))
        return reader.metadata

    return read_video(source, metadata, video_backend, allow_truncated, download_limits)


__all__ = ["read_video", "read_video_metadata"]
