# SPDX-License-Identifier: Apache-2.0
import base64
import gzip
import io
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf import DownloadLimits, LlavaSTVideoProcessor
from llava_st_hf.model.media_files_llava_st import is_data_url, is_file_content, is_url, local_path, local_video, source_name
from llava_st_hf.model.video_reading_llava_st import read_video_metadata
from modeling_tests.media import moving_frames, write_video
from modeling_tests.servers import redirect, reply, serve


CONTENT = bytes(range(256)) * 10  # 2,560 bytes


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Creates the folder of temporary files, which must be empty after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(CONTENT)
    return path


def content_of(source, limits=None):
    with local_video(source, limits) as path:
        return Path(path).read_bytes()


def data_url(content=CONTENT, head="data:video/mp4;base64,"):
    return head + base64.b64encode(content).decode()


def wrapped_lines(content=CONTENT):
    return "data:video/mp4;base64," + base64.encodebytes(content).decode()


SOURCES = {
    "path": str,
    "Path": lambda path: path,
    "file URL": lambda path: path.as_uri(),
    "file URL of localhost": lambda path: path.as_uri().replace("file://", "file://localhost"),
    "upper case file URL": lambda path: path.as_uri().replace("file", "FILE"),
    "bytes": lambda _: CONTENT,
    "bytearray": lambda _: bytearray(CONTENT),
    "memoryview": lambda _: memoryview(CONTENT),
    "BytesIO": lambda _: io.BytesIO(CONTENT),
    "open file": lambda path: path.open("rb"),
    "unbuffered file": lambda path: path.open("rb", buffering=0),
    "file open for writing, too": lambda path: path.open("r+b"),
    "base64": lambda _: data_url(),
    "base64 in lines": lambda _: wrapped_lines(),
    "base64 in capitals": lambda _: data_url(head="DATA:;charset=x;BASE64,"),
    "escaped base64": lambda _: "data:video/mp4;base64," + quote(base64.b64encode(CONTENT).decode(), safe=""),
    "percent-encoded": lambda _: "data:video/mp4," + quote(CONTENT),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_local_video_any_source_type_has_the_same_content(stored, temporary, kind):
    source = SOURCES[kind](stored)
    for _ in range(2):  # a file can be read several times
        assert content_of(source) == CONTENT
    if hasattr(source, "close"):
        source.close()


def test_local_video_url_is_downloaded(temporary):
    with serve(lambda connection, _: connection.sendall(reply(CONTENT))) as server:
        assert content_of(f"{server.url}/clip.mp4") == CONTENT
        assert content_of(f"{server.url.replace('http', 'Http')}/clip.mp4") == CONTENT


def test_local_video_named_temporary_file_is_read_and_keeps_its_position(temporary):
    with tempfile.NamedTemporaryFile() as file:
        file.write(CONTENT)  # not flushed
        assert content_of(file) == CONTENT
        assert file.tell() == len(CONTENT)


def test_local_video_unflushed_file_is_read(tmp_path, temporary):
    with (tmp_path / "clip.mp4").open("w+b") as file:
        file.write(CONTENT)
        assert content_of(file) == CONTENT


def test_local_video_open_file_on_disk_is_not_copied_unless_its_path_changed(stored, tmp_path, temporary):
    with stored.open("rb") as file, local_video(file) as path:
        assert os.path.samefile(path, stored)
    with stored.open("rb") as file:  # another file has this path now
        stored.rename(tmp_path / "other.mp4")
        stored.write_bytes(b"else")
        assert content_of(file) == CONTENT


def test_local_video_open_gzip_file_gives_decompressed_content(tmp_path, temporary):
    path = tmp_path / "clip.mp4.gz"
    path.write_bytes(gzip.compress(CONTENT))
    with gzip.open(path) as file:
        assert content_of(file) == CONTENT


@pytest.mark.parametrize("position", [0, 7, len(CONTENT)])
def test_local_video_open_file_is_read_from_its_start_and_keeps_its_position(stored, temporary, position):
    for file in (io.BytesIO(CONTENT), stored.open("rb"), stored.open("r+b")):
        with file:
            file.seek(position)
            assert content_of(file) == CONTENT
            assert file.tell() == position


def test_local_video_unseekable_file_is_read_from_its_position(temporary):
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(CONTENT)
    with os.fdopen(reading, "rb") as file:
        assert file.read(10) == CONTENT[:10]
        assert content_of(file) == CONTENT[10:]


def test_local_video_failed_read_restores_the_position(temporary):
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 0:
                raise OSError("the disk is gone")
            return super().read(10)

    file = Failing(CONTENT)
    file.seek(3)
    with pytest.raises(OSError, match=r"video of .* cannot be read: the disk is gone|Failing"):
        content_of(file)
    assert file.tell() == 3


class Waiting(io.RawIOBase):
    """Non-blocking file without data."""

    def read(self, size=-1):
        return None


BAD_SOURCES = {
    "empty bytes": (lambda _: b"", OSError, r"video of 0 bytes \(bytes object\) is empty"),
    "empty bytearray": (lambda _: bytearray(), OSError, r"video of 0 bytes \(bytearray object\) is empty"),
    "empty BytesIO": (lambda _: io.BytesIO(), OSError, r"video of 0 bytes \(BytesIO object\) is empty"),
    "empty data": (lambda _: "data:video/mp4;base64,", OSError, r"video of 22 characters \(data:video/mp4;base64,…\) is empty"),
    "text": (lambda path: path.open("r", encoding="latin-1"), ValueError, r"clip\.mp4 \(open file\).* gives str .* mode 'rb'"),
    "text that is no UTF-8": (lambda path: path.open("r", encoding="utf-8"), ValueError, r"clip\.mp4 .*text mode"),
    "StringIO": (lambda _: io.StringIO("words"), ValueError, r"video in an open StringIO cannot be read: it gives str"),
    "empty StringIO": (lambda _: io.StringIO(), ValueError, "it gives str"),
    "nothing yet": (lambda _: Waiting(), ValueError, "it gives NoneType"),
    "closed BytesIO": (lambda _: closed(io.BytesIO(CONTENT)), ValueError, "BytesIO object.*closed"),
    "closed file": (lambda path: closed(path.open("rb")), ValueError, r"clip\.mp4 .*closed"),
    "write-only file": (lambda path: (path.parent / "new.mp4").open("wb"), ValueError, r"new\.mp4 \(open file\) cannot be read"),
    "no comma": (lambda _: "data:video/mp4;base64", ValueError, r"\(data:video/mp4;base64…\) has no comma"),
    "cut base64": (lambda _: data_url()[:-3], ValueError, r"\(data:video/mp4;base64,.*…\) is not valid base64, or is truncated"),
    "no base64": (lambda _: data_url().replace("B", "!B", 1), ValueError, "is not valid base64"),
    "a number": (lambda _: 3, ValueError, "got <class 'int'>"),
    "None": (lambda _: None, ValueError, "got <class 'NoneType'>"),
    "missing": (lambda path: path.parent / "none.mp4", FileNotFoundError, r"none\.mp4"),
    "missing file URL": (lambda path: (path.parent / "none.mp4").as_uri(), FileNotFoundError, r"none\.mp4"),
    "another host": (lambda path: path.as_uri().replace("file://", "file://elsewhere"), ValueError, "host elsewhere"),
    "folder": (lambda path: path.parent, IsADirectoryError, "is a directory"),
    "unknown scheme": (lambda _: "ftp://me:pw@host/a.mp4", ValueError, "^ftp://host/a.mp4: the URL scheme 'ftp' is not read; only http"),
    "no path": (lambda _: "", FileNotFoundError, "the path of a media file is empty"),
    "zero byte in a path": (lambda _: "a\0b.mp4", FileNotFoundError, "no such file"),
}


def closed(file):
    file.close()
    return file


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_local_video_invalid_source_raises_with_its_name(stored, temporary, kind):
    make, error, message = BAD_SOURCES[kind]
    source = make(stored)
    with pytest.raises(error, match=message):
        content_of(source)
    if hasattr(source, "close"):
        source.close()


def test_local_path_empty_file_pipe_or_device_raises_with_the_path(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(OSError, match=r"empty\.mp4 is empty"):
        local_path(tmp_path / "empty.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match=r"pipe\.mp4 is a pipe or a device"):
        local_path(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match=r"/dev/zero is a pipe or a device"):
        local_path("/dev/zero")


def test_local_video_file_name_is_not_an_ffmpeg_protocol(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "file:a.mp4", "pipe:0"):
        stored.with_name(name).write_bytes(CONTENT)
        with local_video(name) as path:
            assert path == os.path.join(".", name)
            assert Path(path).read_bytes() == CONTENT


@pytest.mark.parametrize("failure", [OSError, ValueError, KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("source", [CONTENT, io.BytesIO(CONTENT), data_url()])
def test_local_video_error_in_the_block_deletes_temporary_files(temporary, source, failure):
    with pytest.raises(failure), local_video(source):
        raise failure("oh no")


def test_local_video_failed_download_deletes_temporary_files(temporary):
    short = reply(CONTENT, length=9999)
    with serve(lambda connection, _: connection.sendall(short)) as server, pytest.raises(OSError, match="2560 of 9999"):
        content_of(f"{server.url}/clip.mp4")


@pytest.mark.parametrize("with_path", [True, False])
def test_local_video_error_names_the_source_instead_of_the_temporary_file(temporary, with_path):
    with serve(lambda connection, _: connection.sendall(reply(CONTENT))) as server:
        url = f"{server.url}/clip.mp4"
        for source, name in ((f"{url}?key=secret", f"{url}?…"), (CONTENT, "video of 2560 bytes (bytes object)")):
            with pytest.raises(OSError) as error, local_video(source) as path:
                raise OSError(f"{path} is no video" if with_path else "no video")
            assert str(error.value) == (f"{name} is no video" if with_path else f"{name}: no video")


def test_local_video_error_names_a_local_file_once(stored):
    with pytest.raises(OSError) as error, local_video(stored) as path:
        raise OSError(f"{path} is no video")
    assert str(error.value) == f"{stored} is no video"


def test_local_video_download_limits_apply_to_urls_and_redirects(temporary):
    with serve(lambda connection, path: connection.sendall(reply(CONTENT) if path == "/clip.mp4" else redirect("/clip.mp4"))) as server:
        for path in ("clip", "moved"):
            assert content_of(f"{server.url}/{path}.mp4", DownloadLimits(video_bytes=2560)) == CONTENT
            with pytest.raises(OSError, match="limit of 2559"):
                content_of(f"{server.url}/{path}.mp4", DownloadLimits(video_bytes=2559))
    with pytest.raises(ValueError, match="download_limits"):
        content_of(f"{server.url}/clip.mp4", {"video_bytes": 10})


@pytest.mark.parametrize(
    "source, kinds",
    [
        ("a.mp4", []),
        (Path("http://host/a.mp4"), []),
        ("httpx://host", []),
        ("database.mp4", []),
        ("HTTPS://host/a", ["url"]),
        ("Data:,", ["data"]),
        (b"http://host/a", ["content"]),
        (io.BytesIO(), ["content"]),
        (io.StringIO(), ["content"]),
        (3, []),
        (None, []),
        ([b"a"], []),
        (torch.zeros(3), []),
    ],
)
def test_is_url_is_data_url_is_file_content_classify_sources(source, kinds):
    found = {"url": is_url(source), "data": is_data_url(source), "content": is_file_content(source)}
    assert [kind for kind, is_one in found.items() if is_one] == kinds


def test_source_name_of_long_sources_is_at_most_500_characters():
    for source in ("a" * 9999, "data:," + "a" * 9999, "http://host/" + "a" * 9999, b"a" * 9999):
        assert len(source_name(source, "video")) <= 500


@given(st.binary(min_size=1), st.booleans())
def test_local_video_data_url_round_trip_gives_any_bytes(content, as_base64):
    assert content_of(data_url(content) if as_base64 else "data:," + quote(content)) == content


@given(st.text(max_size=200))
def test_local_video_any_data_url_raises_only_os_error_or_value_error(words):
    try:
        content_of("data:" + words)
    except (OSError, ValueError) as error:
        assert f"video of {5 + len(words)} characters" in str(error)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", moving_frames(8, 48, 64))


def test_video_processor_any_source_type_gives_the_same_pixels(video, temporary):
    processor = LlavaSTVideoProcessor(num_frames=4, size={"height": 28, "width": 28})
    data = video.read_bytes()
    expected = processor(str(video), return_tensors="pt").pixel_values_videos
    with video.open("rb") as file:
        for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), file, data_url(data), "data:video/mp4," + quote(data)):
            assert torch.equal(processor(source, return_tensors="pt").pixel_values_videos, expected)
            assert read_video_metadata(source).total_num_frames == 8


def test_video_processor_damaged_video_in_memory_raises_with_its_description(video, temporary):
    processor = LlavaSTVideoProcessor(num_frames=4)
    data = video.read_bytes()
    for source in (data[:100], b"words" * 20):
        with pytest.raises(OSError, match=r"^video of 100 bytes \(bytes object\)") as error:
            processor(source)
        assert str(temporary) not in str(error.value)


def test_video_processor_download_limits_apply_to_all_calls(video):
    processor, one_host = LlavaSTVideoProcessor(num_frames=4), DownloadLimits(allowed_hosts=["media.example"])
    with serve(lambda connection, _: connection.sendall(reply(video.read_bytes()))) as server:
        url = f"{server.url}/clip.mp4"
        assert processor(url, return_tensors="pt").pixel_values_videos.shape[1] == 4
        for download in (
            lambda: processor(url, download_limits=one_host),
            lambda: LlavaSTVideoProcessor(download_limits=one_host)(url),
            lambda: read_video_metadata(url, download_limits=one_host),
            lambda: processor([[f"{server.url}/frame.png"]], download_limits=one_host),
        ):
            with pytest.raises(OSError, match="not one of those allowed"):
                download()
        assert len(server.requests) == 1


def test_video_processor_download_limits_are_not_saved_and_must_be_an_object(tmp_path):
    processor = LlavaSTVideoProcessor(download_limits=DownloadLimits(seconds=5))
    processor.save_pretrained(tmp_path)
    assert LlavaSTVideoProcessor.from_pretrained(tmp_path).download_limits is None
    with pytest.raises(ValueError, match="download_limits"):
        LlavaSTVideoProcessor(download_limits={"public_addresses_only": False})("http://127.0.0.1:9/clip.mp4")
