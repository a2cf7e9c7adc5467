# SPDX-License-Identifier: Apache-2.0
"""Pictures of the web page for docs/web_app.md.

make test-app                                        # installs the browser
python -m modeling_tests.app_screenshots docs/images
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from transformers import pipeline

from modeling_tests import browser
from modeling_tests.app_server import served
from modeling_tests.test_app_page import EVENT, EVENT_BOX, VIDEO, ask, choose_task, drag, draw_box, open_example


SIZES = {"web_app.png": (1280, 1000, {}), "web_app_phone.png": (390, 844, {"has_touch": True, "is_mobile": True})}
COLOURS = 128  # of a picture, whose file is then a third as large


def take(page) -> None:
    """Asks two questions about an example, and shows both answers."""
    open_example(page, "video-2")
    choose_task(page, "stvg")
    page.get_by_label("Sentence that describes the event").fill("The small blue circle grows.")
    ask(page)
    choose_task(page, "elc")
    x = (EVENT.start + 0.05) / (VIDEO.num_frames / VIDEO.fps)
    drag(page, "llava-player .lane.question", (x, 0.5), (x, 0.5))
    page.evaluate("time => document.querySelector('llava-player').seek(time)", EVENT.start)
    draw_box(page, EVENT_BOX, (VIDEO.width, VIDEO.height))
    ask(page)
    page.locator("llava-answers .compare").click()
    page.evaluate("time => document.querySelector('llava-player').seek(time)", (EVENT.start + EVENT.end) / 2)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with served(pipeline("video-grounding")) as (_, url), sync_playwright() as playwright:
        chromium = browser.launch(playwright)
        for name, (width, height, options) in SIZES.items():
            page = chromium.new_context(viewport={"width": width, "height": height}, **options).new_page()
            page.set_default_timeout(60_000)
            page.goto(url)
            page.wait_for_function("customElements.get('llava-player') && document.querySelector('llava-player')?.question?.visit")
            take(page)
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
            picture.quantize(COLOURS).save(folder / name, optimize=True)
            print(f"{folder / name}: {(folder / name).stat().st_size / 1000:.0f} kB")
        chromium.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
