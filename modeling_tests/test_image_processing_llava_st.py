# SPDX-License-Identifier: Apache-2.0
import base64
import functools
import http.server
import threading
from io import BytesIO

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from llava_st_hf import LlavaSTImageProcessor, load_image, original_size
from llava_st_hf.model.image_processing_llava_st import resize_pixels
from modeling_tests.media import moving_frames
from modeling_tests.reference import preprocessing_case


ONE_STEP = 2 / 255


@pytest.fixture
def processor():
    return LlavaSTImageProcessor()


@pytest.fixture
def picture():
    return Image.fromarray(moving_frames(1, 60, 90)[0])


def pil_pixels(image, size=384):
    """Reference implementation: PIL bicubic, /255, mean = std = 0.5."""
    resized = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return torch.from_numpy((resized / 255 - 0.5) / 0.5).permute(2, 0, 1).float()


def assert_close_to_pil(actual, expected):
    difference = (actual - expected).abs()
    assert difference.max() <= ONE_STEP + 1e-6
    assert difference.mean() < 0.01 * ONE_STEP


def pixels_of(processor, image, **kwargs):
    return processor(image, return_tensors="pt", **kwargs).pixel_values


@pytest.mark.parametrize("case", range(3))
def test_image_processor_frames_equal_the_original_preprocessing(processor, case):
    frames, expected = preprocessing_case(case)
    assert_close_to_pil(pixels_of(processor, frames)[:, :, ::5, ::5], expected)


def test_image_processor_resizes_to_a_square_and_normalizes(processor, picture):
    pixels = pixels_of(processor, picture)
    assert pixels.shape == (1, 3, 384, 384) and pixels.dtype == torch.float32
    assert_close_to_pil(pixels[0], pil_pixels(picture))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (333, 77), (384, 384), (500, 333), (640, 360), (700, 690), (900, 1400)])
def test_image_processor_any_size_equals_pil(processor, size):
    image = Image.fromarray(moving_frames(1, *size)[0])
    assert_close_to_pil(pixels_of(processor, image)[0], pil_pixels(image))


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_image_processor_float_image_with_hard_edge_stays_in_minus_1_to_1(processor, white):
    image = np.zeros((60, 90, 3), np.float32)
    image[:, 45:] = white  # bicubic interpolation overshoots on both sides of the edge
    pixels = pixels_of(processor, image)
    assert pixels.min() == -1.0 and pixels.max() == 1.0


@pytest.mark.parametrize("height, width, first", [(160, 100, "rows"), (139, 100, "columns"), (100, 160, "columns")])
def test_resize_pixels_resizes_rows_first_only_if_height_shrinks_over_twice_as_much(height, width, first):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def resized(*sizes):
        image = Image.fromarray(frame)
        for size in sizes:
            image = image.resize(size, Image.Resampling.BICUBIC)
        return np.asarray(image)

    orders = {"rows": resized((width, 60), (60, 60)), "columns": resized((60, height), (60, 60))}
    assert (orders["rows"] != orders["columns"]).any()
    found = resize_pixels(torch.from_numpy(frame).permute(2, 0, 1)[None], (60, 60), "bicubic", None)[0].permute(1, 2, 0)
    assert (found.numpy() == orders[first]).all()
    if int(PIL.__version__.split(".")[0]) >= 13:
        assert (resized((60, 60)) == orders[first]).all()


def test_image_processor_tall_image_equals_pil(processor):
    image = Image.fromarray(moving_frames(1, 1200, 500)[0])
    assert_close_to_pil(pixels_of(processor, image)[0], pil_pixels(image))


def test_image_processor_custom_size_sets_height_and_width(processor, picture):
    assert pixels_of(processor, picture, size={"height": 20, "width": 30}).shape == (1, 3, 20, 30)


def test_image_processor_equal_images_of_any_type_give_equal_pixels(processor, picture, tmp_path):
    path = tmp_path / "picture.png"
    picture.save(path)
    array = np.asarray(picture).copy()
    uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    ways = [picture, str(path), path, path.as_uri(), uri, array, array.transpose(2, 0, 1), torch.from_numpy(array)]
    ways += [array.astype(np.int64), array[:, ::-1][:, ::-1], array.astype(np.uint16) * 257]
    expected = pixels_of(processor, picture)
    for way in ways:
        torch.testing.assert_close(pixels_of(processor, way), expected)
        assert original_size(way) == (60, 90)


def test_image_processor_float_images_equal_8_bit_images(processor, picture):
    floats = np.asarray(picture).astype(np.float32)
    expected = pixels_of(processor, picture)
    torch.testing.assert_close(pixels_of(processor, floats), expected, atol=2 * ONE_STEP, rtol=0)
    unit = pixels_of(processor, floats / 255, do_rescale=False)
    torch.testing.assert_close(unit, expected, atol=2 * ONE_STEP, rtol=0)


def test_image_processor_url_is_downloaded(processor, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        torch.testing.assert_close(pixels_of(processor, f"{url}/picture.png"), pixels_of(processor, picture))
        with pytest.raises(OSError, match=r"absent\.png"):
            processor(f"{url}/absent.png")
        server.shutdown()


def test_image_processor_nested_lists_are_flattened_in_order(processor, picture):
    small = picture.resize((30, 20))
    flat = pixels_of(processor, [picture, small, np.asarray(small)])
    assert flat.shape[0] == 3
    torch.testing.assert_close(pixels_of(processor, [[picture], [small, small]]), flat)
    torch.testing.assert_close(pixels_of(processor, [picture, small, small])[1], flat[2])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK"])
def test_image_processor_any_pil_mode_equals_its_rgb_conversion(processor, picture, mode):
    image = picture.convert(mode)
    assert_close_to_pil(pixels_of(processor, image)[0], pil_pixels(image))


def test_image_processor_alpha_channel_is_dropped_and_not_composited(processor, picture):
    transparent = picture.convert("RGBA")
    transparent.putalpha(0)
    expected = pixels_of(processor, picture)
    torch.testing.assert_close(pixels_of(processor, transparent), expected)
    torch.testing.assert_close(pixels_of(processor, np.asarray(transparent)), expected)


def test_image_processor_grayscale_arrays_are_repeated_over_channels(processor):
    grey = moving_frames(1, 40, 50)[0, :, :, 0]
    expected = pixels_of(processor, Image.fromarray(grey))
    for array in (grey, grey[..., None], grey[None]):
        torch.testing.assert_close(pixels_of(processor, array), expected)


def test_image_processor_16_bit_grayscale_is_scaled_and_not_clipped(processor, tmp_path):
    grey = moving_frames(1, 40, 50)[0, :, :, 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    opened = Image.open(tmp_path / "deep.png")
    assert opened.mode.startswith("I")
    expected = pixels_of(processor, Image.fromarray(grey))
    for image in (opened, opened.convert("I"), str(tmp_path / "deep.png")):
        torch.testing.assert_close(pixels_of(processor, image), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_processor_exif_orientation_is_applied(processor, picture, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    picture.save(path, exif=exif)
    upright = load_image(path)
    assert original_size(path) == original_size(Image.open(path)) == (upright.height, upright.width)
    assert original_size(path) == ((60, 90) if orientation < 5 else (90, 60))
    expected = pixels_of(processor, np.asarray(upright))
    torch.testing.assert_close(pixels_of(processor, str(path)), expected)
    torch.testing.assert_close(pixels_of(processor, Image.open(path)), expected)


def write_bad_file(folder, kind):
    path = folder / f"{kind}.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not a picture")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        buffer = BytesIO()
        Image.effect_noise((64, 64), 50).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue()[:1000])
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "folder"])
def test_image_processor_unreadable_file_raises_with_its_name(processor, tmp_path, kind):
    path = write_bad_file(tmp_path, kind)
    with pytest.raises(OSError, match=f"{kind}.png"):
        processor(str(path), return_tensors="pt")


def test_image_processor_missing_file_raises_file_not_found(processor):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        processor("nowhere.jpg")


@pytest.mark.parametrize(
    "image, message",
    [
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), np.inf, dtype=np.float32), "infinity"),
        (np.full((4, 4, 3), 300), "0 to 255"),
        (np.zeros((4, 4, 3), dtype=bool), "bool"),
        (np.zeros((9, 5, 7), dtype=np.uint8), r"\(9, 5, 7\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4,), dtype=np.uint8), r"\(4,\)"),
        (np.zeros((1, 2, 4, 4, 3), dtype=np.uint8), "2, 4, 4, 3"),
        (np.array([["a", "b"]]), "numbers"),
        (Image.new("F", (4, 4)), "'F'"),
        (Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "65535"),
        (3.5, "float"),
    ],
)
def test_image_processor_invalid_pixels_raises(processor, image, message):
    with pytest.raises(ValueError, match=message):
        processor(image, return_tensors="pt")


@pytest.mark.parametrize(
    "options",
    [{"size": {"shortest_edge": 20}}, {"do_center_crop": True, "crop_size": 20}, {"resample": 0}, {"do_pad": True}],
)
def test_image_processor_unsupported_options_raises(processor, picture, options):
    with pytest.raises(ValueError):
        processor(picture, **options)


def test_image_processor_save_and_load_keeps_the_size(processor, tmp_path):
    LlavaSTImageProcessor(size={"height": 28, "width": 42}).save_pretrained(tmp_path)
    loaded = LlavaSTImageProcessor.from_pretrained(tmp_path)
    assert dict(loaded.size) == {"height": 28, "width": 42}
    assert loaded.to_dict()["image_processor_type"] == "LlavaSTImageProcessor"
