# SPDX-License-Identifier: Apache-2.0
"""Prints the bytes of the sampled frames of clips as the client sends them: lossless, in the size of the model.

    python examples/benchmarks/encoded_frames.py
    python examples/benchmarks/encoded_frames.py --photo photo.jpg      # the camera films this photograph
    python examples/benchmarks/encoded_frames.py --video film.mp4       # of this file only

100 frames of 384×384 pixels are sampled of 100 frames of each clip. Kinds of clips: `flat`, a disc that moves over a colour gradient,
without noise; `shapes`, a video of the Shapes dataset; `camera`, a camera that pans over a photograph, by default over a texture with the
spectrum of photographs (amplitude 1/frequency) and without their smooth parts, with independent Gaussian noise of a standard deviation of 0
to 10 in each pixel of the source. Sources are files of H.264 at CRF 20, whose encoder removes a part of the noise, or arrays of frames.
Printed in MB (10⁶ bytes): the file, its encoded frames, these in base64, as in the request, and the encoded frames of the arrays.
"""

import argparse
import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from llava_st_hf import DEMO_MODEL_PATH, LlavaSTProcessor, LlavaSTVideoProcessor
from llava_st_hf.client.media import encode_video
from llava_st_hf.shapes.files import encode_video as write_file
from llava_st_hf.shapes.long_videos import long_video


FRAMES, FPS = 100, 10
SIZES = {"384x384": (384, 384), "1920x1080": (1080, 1920)}  # name → height, width


def flat(height: int, width: int) -> Iterator[np.ndarray]:
    """Yields (height, width, 3) uint8: a disc that crosses a gradient of colours."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([255 * x / width, 255 * y / height, np.full(x.shape, 96)], axis=-1).astype(np.uint8)
    for number in range(FRAMES):
        frame = ground.copy()
        frame[np.hypot(x - width * number / FRAMES, y - height / 2) < height / 6] = (200, 40, 40)
        yield frame


def shapes() -> Iterator[np.ndarray]:
    """Yields the first frames of a video of the Shapes dataset, (side, side, 3) uint8."""
    for _, frame in zip(range(FRAMES), long_video("test", 0, FRAMES / FPS + 10).frames(), strict=False):
        yield frame


def texture(height: int, width: int) -> np.ndarray:
    """Returns (height, width, 3) float32 with random phases and amplitudes of 1/frequency, of the scale 0 to 255."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    planes = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width)) for _ in range(3)]
    return np.stack([128 + 50 * plane / plane.std() for plane in planes], axis=-1).astype(np.float32)


def camera(height: int, width: int, noise: float, photo: str | None) -> Iterator[np.ndarray]:
    """Yields (height, width, 3) uint8 of a camera that pans by a tenth of its width. `noise` is of the scale 0 to 255."""
    rng = np.random.default_rng(0)
    shift = width // 10
    if photo is None:
        whole = texture(height, width + shift)
    else:
        whole = np.asarray(Image.open(photo).convert("RGB").resize((width + shift, height), Image.Resampling.BICUBIC), np.float32)
    for number in range(FRAMES):
        left = shift * number // FRAMES
        frame = whole[:, left : left + width]
        if noise:
            frame = frame + noise * rng.standard_normal(frame.shape, dtype=np.float32)
        yield frame.clip(0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", metavar="FILE", help="photograph of the camera")
    parser.add_argument("--video", metavar="FILE", help="measure this video only")
    args = parser.parse_args()
    processor = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH)
    processor.video_processor = LlavaSTVideoProcessor()  # with the settings of the released checkpoints
    size = processor.video_processor.size
    assert (size["height"], size["width"], processor.video_processor.num_frames) == (384, 384, FRAMES)
    if args.video is not None:
        print(f"{sent(args.video, {}, processor) / 1e6:.1f} MB encoded, the file has {Path(args.video).stat().st_size / 1e6:.1f} MB")
        return
    clips = {"flat 384x384": flat(384, 384), "flat 1920x1080": flat(1080, 1920), "shapes": shapes()}
    clips |= {
        f"camera {name}, noise {noise:g}": camera(*side, noise, args.photo) for name, side in SIZES.items() for noise in (0, 2, 5, 10)
    }
    print(f"{FRAMES} frames of 384x384 without encoding: {FRAMES * 384 * 384 * 3 / 1e6:.1f} MB")
    print(f"{'clip':32} {'file':>8} {'encoded':>8} {'base64':>8}   of arrays: encoded")
    with tempfile.TemporaryDirectory() as folder:
        for name, frames in clips.items():
            path, held = Path(folder) / "clip.mp4", list(frames)
            write_file(held, FPS, path)
            encoded = sent(str(path), {}, processor)
            # Arrays of 1920×1080 pixels are those of a file that a program has decoded.
            given = sent(np.stack(held), {"video_metadata": {"fps": FPS, "total_num_frames": len(held)}}, processor)
            print(
                f"{name:32} {path.stat().st_size / 1e6:8.1f} {encoded / 1e6:8.1f} {encoded * 4 / 3 / 1e6:8.1f}   {given / 1e6:8.1f}",
                flush=True,
            )


def sent(video, options: dict, processor: LlavaSTProcessor) -> int:
    """Bytes of the sampled frames of a video as the client sends them."""
    url = encode_video({"type": "video", "video": video}, options, processor, {}, largest_file=0).url
    head, _, data = url.partition(",")
    assert head == "data:video/x-matroska;base64"
    return len(base64.b64decode(data))


if __name__ == "__main__":
    main()
