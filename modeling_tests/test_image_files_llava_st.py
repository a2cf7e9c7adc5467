# SPDX-License-Identifier: Apache-2.0
import base64
import io
import os
import random
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image, PngImagePlugin

from llava_st_hf import DownloadLimits, LlavaSTImageProcessor
from llava_st_hf.data.validate import _image_size
from llava_st_hf.model.image_files_llava_st import check_image_file, load_image
from llava_st_hf.model.image_processing_llava_st import original_size
from modeling_tests.media import moving_frames
from modeling_tests.processors import tiny_processor
from modeling_tests.servers import reply, serve


@pytest.fixture
def picture():
    return Image.fromarray(moving_frames(1, 60, 90)[0])


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def openers(path):
    """Functions of the package that open an image file, by name."""
    data = Path(path).read_bytes()
    return {
        "load": lambda: load_image(path),
        "bytes": lambda: load_image(data),
        "data URL": lambda: load_image(f"data:image/png;base64,{base64.b64encode(data).decode()}"),
        "size": lambda: original_size(path),
        "processor": lambda: LlavaSTImageProcessor()(str(path)),
        "check": lambda: check_image_file(str(path)),
    }


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "MPO", "AVIF"])
def test_load_image_common_formats_are_read_regardless_of_the_suffix(picture, tmp_path, kind):
    if kind == "AVIF" and "AVIF" not in PIL.Image.SAVE:
        pytest.skip("this PIL has no AVIF")
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(picture, kind))
    assert load_image(path).size == (90, 60)
    assert original_size(path) == (60, 90)


def eps():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(oh no) print\n%%EOF\n"


def wmf():
    return b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 90, 60, 72) + bytes(6) + b"\1\0\t\0" + bytes(40)


OTHER_FORMATS = {
    "EPS": lambda picture: eps(),
    "DOS EPS": lambda picture: b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(eps())) + bytes(20) + eps(),
    "WMF": lambda picture: wmf(),
    "PCX": lambda picture: encoded(picture, "PCX"),
    "TGA": lambda picture: encoded(picture, "TGA"),
    "SGI": lambda picture: encoded(picture, "SGI"),
    "ICNS": lambda picture: encoded(picture, "ICNS"),
    "PDF": lambda picture: encoded(picture, "PDF"),
    "SVG": lambda picture: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "FITS": lambda picture: b"SIMPLE  =                    T" + bytes(3000),
    "PSD": lambda picture: b"8BPS" + bytes(300),
}


@pytest.mark.parametrize("kind", OTHER_FORMATS)
def test_image_files_other_formats_raise_before_their_decoders_are_called(picture, tmp_path, monkeypatch, kind):
    path = tmp_path / "picture.jpg"
    path.write_bytes(OTHER_FORMATS[kind](picture))
    PIL.Image.init()
    for name in ("EPS", "WMF", "PCX", "TGA", "SGI", "ICNS", "FITS", "PSD"):
        seen = (lambda *_: pytest.fail("its reader was asked"), PIL.Image.OPEN[name][1])
        monkeypatch.setitem(PIL.Image.OPEN, name, seen)
    for opener in openers(path).values():
        with pytest.raises(OSError, match="its content is none of JPEG, PNG"):
            opener()


def png_header(width, height):
    """PNG file without pixel data whose header declares `width` x `height` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (50_000, 50_000)], ids=["PIL warns", "PIL refuses"])
def test_image_files_decompression_bomb_raises_with_the_source(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    for name, opener in openers(path).items():
        source = r"image of \d+ (bytes|characters)" if name in ("bytes", "data URL") else r"bomb\.png"
        with pytest.raises(OSError, match=rf"{source}.*limit"):
            opener()
    with pytest.raises(OSError, match="limit"):
        _image_size(str(path))


@pytest.mark.filterwarnings("error")
def test_load_image_decompression_bomb_raises_the_same_error_if_warnings_are_errors(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 9_000))
    with pytest.raises(OSError, match=r"bomb\.png.*limit"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_load_image_uses_the_pixel_limit_of_pil(picture, tmp_path, monkeypatch):
    picture.save(tmp_path / "picture.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 90 * 60)
    assert load_image(tmp_path / "picture.png").size == (90, 60)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 90 * 60 - 1)
    with pytest.raises(OSError, match=r"90x60 pixels are more than the limit of 5399 \(PIL\.Image\.MAX_IMAGE_PIXELS\)"):
        load_image(tmp_path / "picture.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(tmp_path / "picture.png").size == (90, 60)


def test_load_image_png_with_too_much_compressed_text_raises_with_the_path(picture, tmp_path):
    words = PngImagePlugin.PngInfo()
    words.add_text("comment", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    picture.save(tmp_path / "bomb.png", pnginfo=words)
    with pytest.raises(OSError, match=r"bomb\.png"):
        load_image(tmp_path / "bomb.png")


FUZZED = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "PPM": {},
    "JPEG2000": {},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FUZZED)
def test_load_image_and_original_size_damaged_data_gives_an_image_or_names_the_source(kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    data = encoded(Image.fromarray(moving_frames(1, 24, 32)[0]), kind, exif=exif, **FUZZED[kind])
    chance = random.Random(kind)
    failures = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 2, 8])):
            damaged[chance.randrange(min(len(data), chance.choice([64, 10**6])))] = chance.choice([0, 255, chance.randrange(256)])
        damaged = damaged[: chance.choice([len(data), chance.randrange(1, len(data))])]
        for opener in (load_image, original_size):
            try:
                opener(damaged)
            except OSError as error:
                failures += 1
                assert f"image of {len(damaged)} bytes (bytearray object)" in str(error) or "pixels has damaged EXIF data" in str(error)
    assert 50 < failures < 600


@pytest.mark.parametrize(
    "error",
    [
        *(struct.error, zlib.error, KeyError, IndexError, TypeError, ZeroDivisionError, OverflowError, RuntimeError, EOFError),
        *(MemoryError, AssertionError, AttributeError, NotImplementedError, SyntaxError, ValueError),
    ],
)
def test_load_image_any_decoder_exception_becomes_an_oserror_with_the_path(picture, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    picture.save(tmp_path / "picture.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(OSError, match=r"picture\.png is a damaged image: \S"):
        load_image(tmp_path / "picture.png")
    with pytest.raises(OSError, match="a PIL image of 90x60 pixels is damaged"):
        load_image(Image.open(tmp_path / "picture.png"))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", fail)
    with pytest.raises(OSError, match=r"picture\.png is not an image that can be read: \S"):
        original_size(tmp_path / "picture.png")


def test_check_image_file_wrong_checksum_raises_and_load_image_accepts_it(picture, tmp_path):
    data = bytearray(encoded(picture))
    data[-13] ^= 1  # the last byte of the checksum of the pixels, before the IEND chunk of 12 bytes
    (tmp_path / "picture.png").write_bytes(data)
    assert load_image(tmp_path / "picture.png").size == (90, 60)
    with pytest.raises(OSError, match=r"picture\.png is a damaged image"):
        check_image_file(str(tmp_path / "picture.png"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no list of open files")
@pytest.mark.parametrize("read", [load_image, original_size, check_image_file])
def test_image_files_leave_no_file_open(picture, tmp_path, monkeypatch, read):
    path = str(tmp_path / "picture.gif")
    picture.save(path, save_all=True, append_images=[picture.rotate(90)])  # PIL keeps files with several images open
    opened, open_image = [], PIL.Image.open  # references, so that garbage collection does not close them
    monkeypatch.setattr(PIL.Image, "open", lambda *args, **kwargs: opened.append(open_image(*args, **kwargs)) or opened[-1])
    before = os.listdir("/proc/self/fd")
    read(path)
    assert os.listdir("/proc/self/fd") == before and opened


def test_image_processor_every_source_type_gives_equal_pixels(picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    base64_url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    processor = LlavaSTImageProcessor()
    expected = processor(picture, return_tensors="pt").pixel_values
    with path.open("rb") as file, serve(lambda connection, _: connection.sendall(reply(data))) as server:
        ways = [data, bytearray(data), memoryview(data), io.BytesIO(data), file, base64_url, f"data:,{quote(data)}", f"{server.url}/a.png"]
        for way in [*ways, [ways], [[way] for way in ways]]:
            pixels = processor(way, return_tensors="pt").pixel_values
            assert torch.equal(pixels, expected.expand_as(pixels))
        for way in ways:
            assert original_size(way) == (60, 90)
            assert np.array_equal(load_image(way), picture)


@pytest.mark.parametrize("cut", [30, 200, -3])
def test_load_image_truncated_data_url_raises_with_the_source(picture, cut):
    url = f"data:image/png;base64,{base64.b64encode(encoded(picture)).decode()}"[:cut]
    with pytest.raises((OSError, ValueError), match=rf"image of {len(url)} characters \(data:image/png;base64,"):
        load_image(url)


def test_image_processor_bytes_that_are_not_an_image_raise():
    for source in (b"words", io.BytesIO(b"words")):
        with pytest.raises(OSError, match=r"image of 5 bytes \(Bytes\w*|bytes object\) is not an image"):
            LlavaSTImageProcessor()(source)


def test_image_functions_apply_download_limits(picture, tmp_path):
    one_host, data = DownloadLimits(allowed_hosts=["media.example"]), encoded(picture)
    with serve(lambda connection, _: connection.sendall(reply(data))) as server:
        url = f"{server.url}/a.png"
        for download in (
            lambda: load_image(url, one_host),
            lambda: original_size(url, one_host),
            lambda: LlavaSTImageProcessor()([[url]], download_limits=one_host),
            lambda: LlavaSTImageProcessor(download_limits=one_host)(url),
        ):
            with pytest.raises(OSError, match="not one of those allowed"):
                download()
        assert server.requests == []
        with pytest.raises(OSError, match=f"limit of {len(data) - 1}"):
            load_image(url, DownloadLimits(image_bytes=len(data) - 1))
        assert load_image(url, DownloadLimits(image_bytes=len(data))).size == (90, 60)


@pytest.mark.parametrize("way", ["flat", "images_kwargs", "chat"])
def test_processor_applies_download_limits_to_images_and_downloads_once(picture, way):
    processor, one_host = tiny_processor(), DownloadLimits(allowed_hosts=["media.example"])
    with serve(lambda connection, _: connection.sendall(reply(encoded(picture)))) as server:
        url = f"{server.url}/a.png"
        chat = [{"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "What?"}]}]

        def ask(limits):
            if way == "chat":
                options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"download_limits": limits}}
                return processor.apply_chat_template(chat, **options)
            options = {"images_kwargs": {"download_limits": limits}} if way == "images_kwargs" else {"download_limits": limits}
            return processor(images=url, text="<image>", **options)

        with pytest.raises(OSError, match="not one of those allowed"):
            ask(one_host)
        assert server.requests == []
        assert ask(DownloadLimits(allowed_hosts=["127.0.0.1"])).media_info[0][0].width == 90
        assert len(server.requests) == 1  # downloaded once, for its size and its pixels


def test_image_processor_download_limits_are_not_saved_and_a_dict_raises(tmp_path):
    LlavaSTImageProcessor(download_limits=DownloadLimits(seconds=5)).save_pretrained(tmp_path)
    assert LlavaSTImageProcessor.from_pretrained(tmp_path).download_limits is None
    with pytest.raises(ValueError, match="download_limits"):
        LlavaSTImageProcessor(download_limits={"public_addresses_only": False})("http://127.0.0.1:9/a.png")
