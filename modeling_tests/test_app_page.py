# SPDX-License-Identifier: Apache-2.0
"""The web page in Chromium: questions of all tasks, drawing, keyboard, touch, comparison, downloads, and what visitors may not do."""

import contextlib
import io
import json
import re
import time

import pytest
from PIL import Image
from transformers import pipeline

from llava_st_hf import Event, Grounding
from llava_st_hf.app.questions import LABELS
from llava_st_hf.model.session_llava_st import GroundingSession
from llava_st_hf.shapes.scenes import make_scene, scene_seed
from modeling_tests import browser
from modeling_tests.app_server import served


# Only the environment of `make test-app` has it, where a run without tests fails.
playwright = pytest.importorskip("playwright.sync_api")
expect, sync_playwright = playwright.expect, playwright.sync_playwright

pytestmark = pytest.mark.browser
TIMEOUT = 30_000  # milliseconds; a busy machine needs many times the usual one
MARKUP = '<img src=x onerror="window.attacked=1"><b>bold</b>'
VIDEO = make_scene(scene_seed("test", 2), is_video=True)
FIRST_VIDEO = make_scene(scene_seed("test", 1), is_video=True)
PICTURE = make_scene(scene_seed("test", 3), is_video=False)


@pytest.fixture(scope="module")
def grounder():
    return pipeline("video-grounding")


@pytest.fixture(scope="module")
def site(grounder):
    with served(grounder) as (application, url):
        yield application, url


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        running = browser.launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope="module")
def foreign():
    """URLs outside the server that any page requested, and errors in its scripts."""
    return []


@pytest.fixture(scope="module")
def visit(site, chromium, foreign):
    """Function that opens the page as a new visitor."""
    contexts = []

    def visit(width=1280, height=1000, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT)
        own = (site[1], "data:", f"blob:{site[1]}")
        page.on("request", lambda request: request.url.startswith(own) or foreign.append(request.url))
        page.on("pageerror", lambda error: foreign.append(str(error)))
        page.on(
            "console",
            lambda message: message.type == "error" and "Content Security Policy" in message.text and foreign.append(message.text),
        )
        page.goto(site[1])
        page.wait_for_function("customElements.get('llava-player') && document.querySelector('llava-player')?.question?.visit")
        return page

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(visit):
    return visit()


def open_example(page, name):
    page.locator(f"llava-player .example[data-name={name}]").click()
    expect(page.locator(f"llava-player .example[data-name={name}]")).to_have_attribute("aria-pressed", "true", timeout=TIMEOUT)
    expect(page.locator("llava-player .busy")).to_have_count(0, timeout=TIMEOUT)
    page.wait_for_function("(s => s && (s.complete || s.readyState > 1))(document.querySelector('llava-player').stage.firstChild)")


def choose_task(page, task):
    page.get_by_role("radio", name=LABELS[task][0]).check()
    page.wait_for_timeout(100)


def question(page):
    return page.evaluate("document.querySelector('llava-player').question")


def drag(page, selector, start, end):
    """Drags the mouse between two points of an element, given as fractions of its width and height."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    (x1, y1), (x2, y2) = ((box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end))
    page.mouse.move(x1, y1)
    page.mouse.down()
    page.mouse.move((x1 + x2) / 2, (y1 + y2) / 2)
    page.mouse.move(x2, y2)
    page.mouse.up()


def draw_box(page, box, size):
    drag(page, "llava-player .overlay", (box[0] / size[0], box[1] / size[1]), (box[2] / size[0], box[3] / size[1]))


def ask(page, button="Ask"):
    """Presses a button and returns the card of the new answer."""
    cards = page.locator("llava-answers li.answer[data-number]")
    count = cards.count()
    for _ in range(10):  # a press before the end of the last question has arrived has no effect
        page.get_by_role("button", name=button, exact=True).click()
        with contextlib.suppress(AssertionError):
            expect(page.locator("llava-answers .pending, llava-answers .problem:not(:empty)").or_(cards.nth(count))).to_have_count(
                1, timeout=1500
            )
            break
    expect(cards).to_have_count(count + 1, timeout=TIMEOUT)
    return cards.first


def colours(page, selector, x, y):
    """Colours within three pixels of a point of an element, given in CSS pixels from its corner, in a screenshot."""
    image = Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
    return [image.getpixel((column, row)) for column in near(x, image.width) for row in near(y, image.height)]


def near(place, length):
    return range(max(round(place) - 3, 0), min(round(place) + 4, length))


ANSWER_COLOUR, QUESTION_COLOUR = (217, 95, 2), (10, 143, 91)
EVENT = VIDEO.events[0]
EVENT_BOX = VIDEO.box(EVENT.thing, EVENT.start)
QUESTIONS = {
    "rec": {"text": "the yellow cross"},
    "reg": {"box": PICTURE.box(0, 0.0)},
    "dgc": {},
    "tvg": {"text": "the small blue circle grows"},
    "tr": {"span": (EVENT.start, EVENT.end)},
    "stvg": {"text": "The small blue circle grows."},
    "svg": {"span": (EVENT.start, EVENT.end), "text": "The small blue circle grows."},
    "elc": {"time": EVENT.start, "box": EVENT_BOX},
}


@pytest.mark.parametrize("task", QUESTIONS)
def test_page_question_shows_the_answer_of_the_pipeline(page, site, grounder, task):
    given, is_video = QUESTIONS[task], task not in ("rec", "reg", "dgc")
    scene = VIDEO if is_video else PICTURE
    name = "video-2" if is_video else "image-3"
    if page.locator(f"llava-player .example[data-name={name}]").get_attribute("aria-pressed") != "true":
        open_example(page, name)
    choose_task(page, task)
    if "text" in given:
        page.get_by_label(LABELS[task][1]).fill(given["text"])
    duration = scene.num_frames / scene.fps
    if "time" in given:
        drag(page, "llava-player .lane.question", (given["time"] / duration, 0.5), (given["time"] / duration, 0.5))
    if "span" in given and question(page)["span"] is None:  # what was drawn is kept when the task changes
        start, end = (time / duration for time in given["span"])
        drag(page, "llava-player .lane.question", (start, 0.5), (end, 0.5))
    if "box" in given:
        draw_box(page, given["box"], (scene.width, scene.height))
    drawn = {key: value for key, value in question(page).items() if key in ("box", "span", "time") and value is not None}
    assert set(drawn) == set(given) - {"text"}
    for key, value in drawn.items():  # within one pixel, or 1 % of the video
        assert value == pytest.approx(given[key], abs=1 if key == "box" else duration / 100)

    card = ask(page)
    path = site[0].folder / "examples" / f"{name}{'.mp4' if is_video else '.jpg'}"
    asked = {**drawn, **({"text": given["text"]} if "text" in given else {})}
    wanted = Grounding.from_dict(grounder(str(path), task=task, scores=True, **asked))
    lines = card.locator(".events > li")
    expect(lines).to_have_count(len(wanted.events))
    assert wanted.events
    for number, event in enumerate(wanted.events):
        text = lines.nth(number).inner_text()
        assert event.caption is None or event.caption in text
        assert not is_video or f"{event.start:.2f} s – {event.end:.2f} s" in text
        assert not event.boxes or re.search(rf"\b{len(event.boxes)} box", text)
    boxed = next((event for event in wanted.events if event.boxes), None)
    if boxed is None:
        return
    if is_video:
        page.evaluate("time => document.querySelector('llava-player').seek(time)", boxed.boxes[0].time)
    shape = page.locator("llava-player .overlay .answer-A").first
    expect(shape).to_be_visible()
    assert [float(side) for side in shape.get_attribute("data-box").split()] == pytest.approx(boxed.boxes[0].xyxy)
    # What the page shows: a line at the middle of the left side of the box, orange, or green where the box of the question covers it.
    stage = page.locator("llava-player .stage").bounding_box()
    left, middle = boxed.boxes[0].xmin * stage["width"] / scene.width, (boxed.boxes[0].ymin + boxed.boxes[0].ymax) / 2
    shown = colours(page, "llava-player .stage", left, middle * stage["height"] / scene.height)
    assert (QUESTION_COLOUR if task == "reg" else ANSWER_COLOUR) in shown


def test_page_event_of_an_answer_plays_to_its_end(page):
    open_example(page, "video-2")
    choose_task(page, "tvg")
    page.get_by_label(LABELS["tvg"][1]).fill("the small blue circle grows")
    card = ask(page)
    start, end = (float(number) for number in re.findall(r"(\d+\.\d+) s", card.locator(".jump").inner_text()))
    card.locator(".jump").click()
    page.wait_for_function("document.querySelector('llava-player').video.paused")
    # A busy machine displays the frame at the end late.
    assert end - 0.1 < page.evaluate("document.querySelector('llava-player').position") < (end + VIDEO.duration) / 2
    expect(page.locator("llava-player .play")).to_have_text("Play")
    page.locator("llava-player .timeline .event").click()
    page.wait_for_function("start => document.querySelector('llava-player').position >= start - 0.1", arg=start)


def test_page_follow_up_and_comparison_show_two_answers(page):
    open_example(page, "video-1")
    choose_task(page, "tvg")
    page.get_by_label(LABELS["tvg"][1]).fill("the small blue cross moves left")
    ask(page)
    second = ask(page, "Follow up")
    expect(page.locator("llava-player .lane.answer-A .event")).to_have_count(1)
    page.locator("llava-answers .compare").click()
    expect(page.locator("llava-player .lane.answer-B .event")).to_have_count(1)
    expect(page.locator("llava-answers .comparison")).to_contain_text(re.compile(r"Temporal IoU of their first spans: [01]\.\d\d\."))
    assert second.get_attribute("class").split()[-1] == "answer-A"


def test_page_download_is_the_answer(page):
    page.locator("llava-answers summary").first.click()
    with page.expect_download() as download:
        page.locator("llava-answers li.answer a", has_text="Answer (.json)").first.click()
    with open(download.value.path(), encoding="utf-8") as file:
        answer = Grounding.from_dict(json.load(file))
    assert download.value.suggested_filename == "video-1-answer.json"
    assert answer.source == "video-1.mp4" and f"{answer.events[0].start:.2f} s" in page.locator("llava-answers .jump").first.inner_text()


def test_page_keyboard_alone_draws_and_asks(visit):
    page = visit()
    page.locator("llava-player .example[data-name=video-2]").focus()
    page.keyboard.press("Enter")
    expect(page.locator("llava-player .stage video")).to_be_visible(timeout=TIMEOUT)
    expect(page.locator("llava-player .busy")).to_have_count(0, timeout=TIMEOUT)
    page.get_by_role("radio", name=LABELS["stvg"][0]).focus()
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("radio", name=LABELS["elc"][0])).to_be_checked()
    page.get_by_role("button", name="Add a box").focus()
    page.keyboard.press("Enter")
    size = (VIDEO.width, VIDEO.height)
    wanted = [round(side * part, 1) for side, part in zip(size * 2, (0.25, 0.25, 0.75, 0.75), strict=True)]
    assert question(page)["box"] == wanted and question(page)["time"] == 0
    page.keyboard.press("Shift+ArrowRight")  # the box has the focus
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Alt+ArrowDown")
    assert question(page)["box"] == pytest.approx([wanted[0] + 10, wanted[1] - 1, wanted[2] + 10, wanted[3]])
    page.keyboard.press("Delete")
    assert question(page)["box"] is None
    position = page.get_by_role("slider", name="Position in the video")
    position.focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('llava-player').position") == pytest.approx(1 + 1 / VIDEO.fps, abs=1e-3)
    assert position.get_attribute("aria-valuetext") == f"{1 + 1 / VIDEO.fps:.2f} s"
    for label, value in zip(("Left", "Top", "Right", "Bottom"), (10, 20, 60, 70), strict=True):
        page.get_by_label(label, exact=True).fill(str(value))
    page.keyboard.press("Tab")
    page.get_by_role("slider", name="Time of the question").focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    assert (question(page)["box"], question(page)["time"]) == ([10, 20, 60, 70], 0)
    page.get_by_role("button", name="Ask", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.locator("llava-answers li.answer[data-number]")).to_have_count(1, timeout=TIMEOUT)


def test_page_number_outside_the_frame_is_refused(page):
    choose_task(page, "elc")
    for label, value in zip(("Left", "Top", "Right", "Bottom"), (10, 20, 6000, 70), strict=True):
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_label("Bottom", exact=True).press("Tab")
    assert question(page)["box"] is None
    assert (
        page.get_by_label("Right", exact=True).evaluate("input => input.validationMessage")
        == f"Enter a number between 0 and {FIRST_VIDEO.width}."
    )


def test_page_question_without_its_box_names_what_is_missing(page):
    choose_task(page, "elc")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("llava-answers").get_by_role("alert")).to_have_text(
        "Draw a box on the picture. Mark the start on the time line.", timeout=TIMEOUT
    )


def test_page_on_a_phone_fits_and_takes_touches(visit):
    page = visit(390, 844, has_touch=True, is_mobile=True)
    open_example(page, "video-2")
    choose_task(page, "elc")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    overlay = page.locator("llava-player .overlay")
    overlay.scroll_into_view_if_needed()
    box = overlay.bounding_box()
    client = page.context.new_cdp_session(page)

    def touch(kind, x, y):
        points = [] if kind == "touchEnd" else [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 0.25, 0.25)
    touch("touchMove", 0.4, 0.4)
    touch("touchMove", 0.75, 0.5)
    touch("touchEnd", 0, 0)
    wanted = [VIDEO.width * 0.25, VIDEO.height * 0.25, VIDEO.width * 0.75, VIDEO.height * 0.5]
    assert question(page)["box"] == pytest.approx(wanted, abs=1)
    assert page.evaluate(
        """[...document.querySelector("llava-player").shadowRoot.querySelectorAll("button")]
            .every((button) => !button.offsetHeight || button.offsetHeight >= 34)"""
    )


def test_page_boxes_between_frames_are_those_of_the_package(page):
    boxes = [{"time": time, "box": {"xmin": 10.0 * time, "ymin": 5, "xmax": 40 + time, "ymax": 50}} for time in (1.0, 1.5, 3.0)]
    for start, end in ((0.5, 4.0), (1.2, 2.5), (None, None), (1.0, 1.0)):
        given = {"start": start, "end": end, "caption": None, "boxes": boxes}
        event = Grounding.from_dict({"text": "", "events": [given]}).events[0]
        sent = {"start": start, "end": end, "boxes": [{"time": box.time, "box": list(box.xyxy)} for box in event.boxes]}
        times = [0.4, 0.5, 1.0, 1.0005, 1.1, 1.25, 1.5, 2.2, 3.0, 3.5, 4.0, 4.1]
        found = page.evaluate(
            """async ([event, times]) => {
                const { boxAt } = await import("./llava-st/static/geometry.js");
                return times.map((time) => boxAt(event, time));
            }""",
            [sent, times],
        )
        wanted = [Event.box_at(event, time) for time in times]
        assert [shown and (shown["box"], shown["interpolated"]) for shown in found] == [
            box and (pytest.approx(box.xyxy), box.interpolated) for box in wanted
        ]


def slow_stream(session, follow_up=False, **question):
    """An answer of markup with one box after the other."""
    media = session.media_info.to_dict()
    boxes = [{"time": n / 10, "frame": n, "box": {"xmin": n, "ymin": 1, "xmax": 50, "ymax": 60}} for n in range(10)]
    yield {"type": "span", "start": 0.0, "end": 0.9}
    for number in range(10):
        time.sleep(0.15)
        yield {"type": "box", **boxes[number]}
    event = {"start": 0.0, "end": 0.9, "caption": MARKUP, "boxes": boxes}
    yield {
        "type": "answer",
        "answer": {"text": MARKUP, "events": [event], "notes": [MARKUP], "media": media, "task": "tvg", "query": MARKUP},
    }


def test_page_streams_stops_and_shows_markup_as_text(page, monkeypatch):
    monkeypatch.setattr(GroundingSession, "stream", slow_stream)
    open_example(page, "video-1")
    choose_task(page, "tvg")
    page.get_by_label(LABELS["tvg"][1]).fill(MARKUP)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("llava-answers .status")).to_have_text(re.compile(r"Answering… \d box"), timeout=TIMEOUT)
    expect(page.locator("llava-player .lane.answer-A .event")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("llava-answers").get_by_role("alert")).to_have_text("The answer was stopped.", timeout=TIMEOUT)
    card = ask(page)
    for part in (".prompt", ".caption", ".notes li"):
        expect(card.locator(part)).to_contain_text(MARKUP)
    page.evaluate("document.querySelector('llava-player').seek(0.5)")
    expect(page.locator("llava-player .overlay text")).to_have_text(f"{MARKUP[:39]}…")
    assert page.evaluate("window.attacked") is None and page.locator("llava-answers b, llava-player b").count() == 0


def test_page_upload_is_played_and_deleted_with_the_page(visit, site, tmp_path):
    application, _ = site
    page = visit()
    chooser = page.locator("llava-player .file")
    chooser.set_input_files({"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video" * 100})
    expect(page.locator("llava-player .chooser .problem")).to_contain_text("notes.mp4", timeout=TIMEOUT)
    content = (application.folder / "examples/video-1.mp4").read_bytes()
    chooser.set_input_files({"name": f"{MARKUP.replace('/', '')}.mp4", "mimeType": "video/mp4", "buffer": content})
    expect(page.locator("llava-player .stage video")).to_be_visible(timeout=TIMEOUT)
    expect(page.locator("llava-player .busy")).to_have_count(0, timeout=TIMEOUT)
    assert page.evaluate("window.attacked") is None
    folder = application.visits.find(question(page)["visit"]).folder
    assert list(folder.iterdir())
    page.context.close()
    deadline = time.monotonic() + TIMEOUT / 1000
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not folder.exists()


def test_page_makes_no_request_to_another_host(page, foreign):
    assert page.evaluate("performance.getEntriesByType('resource').length") > 10
    assert foreign == []
