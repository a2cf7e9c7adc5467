# SPDX-License-Identifier: Apache-2.0
"""Client of servers: requests, answers, connections and their faults."""

import base64
import email.utils
import io
import json
import pickle
import time
from datetime import datetime, timedelta, timezone

import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import pipeline

from llava_st_hf import DEMO_MODEL_PATH, Grounding, LlavaSTForConditionalGeneration, LlavaSTProcessor
from llava_st_hf.client import CoordinateRows, GroundingClient, RequestError, build_request, http, read_response
from llava_st_hf.client.media import encode_video, lossless_video
from llava_st_hf.examples.sample_media import write_sample_media
from llava_st_hf.model.grammar_export_llava_st import answer_regex
from llava_st_hf.model.questions_llava_st import prepare_question
from modeling_tests.media import moving_frames, write_video
from modeling_tests.openai_server import serve_openai, served_inputs
from modeling_tests.processors import model_for, tiny_processor, user
from modeling_tests.servers import redirect, reply, serve


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    return model_for(processor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_sample_media(folder)
    return folder


@pytest.fixture(scope="module")
def demo():
    return pipeline("video-grounding", model=DEMO_MODEL_PATH, dtype="float32")


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.01)


def ask(server, processor, **settings):
    return GroundingClient(server.url, processor=processor, **settings)


QUESTION = {"image": np.zeros((20, 30, 3), np.uint8), "text": "the dog", "task": "rec"}
FAILED = {"video": "missing.mp4", "text": "x", "task": "tvg"}


# Requests


@pytest.mark.parametrize(
    ("medium", "question"),
    [
        ("photo.jpg", {"task": "rec", "text": "the small yellow triangle"}),
        ("photo.jpg", {"task": "reg", "box": [30 / 99 * 132, 30 / 99 * 96, 60 / 99 * 132, 70 / 99 * 96]}),
        ("photo.jpg", {"task": "dgc"}),
        ("clip.mp4", {"task": "tvg", "text": "the small blue circle moves right"}),
        ("clip.mp4", {"task": "tr", "span": (30 / 99 * 4.3, 60 / 99 * 4.3)}),
        ("clip.mp4", {"task": "stvg", "text": "the small blue circle moves right", "start": 1.0, "end": 3.0}),
        ("clip.mp4", {"task": "svg", "text": "the small blue circle moves right", "span": (30 / 99 * 4.3, 60 / 99 * 4.3)}),
        ("clip.mp4", {"task": "elc", "time": 30 / 99 * 4.3, "box": [30, 50 / 99 * 110, 50, 70 / 99 * 110]}),
    ],
    ids=lambda value: value["task"] if isinstance(value, dict) else "",
)
def test_client_answers_all_tasks_as_the_pipeline(demo, folder, medium, question):
    with serve_openai(demo.model, demo.processor) as server, ask(server, demo.processor) as client:
        answer = client(str(folder / medium), **question, max_tokens=40)
    expected = demo(str(folder / medium), **question, max_new_tokens=40)
    assert answer.to_dict() == Grounding.from_dict({**expected, "notes": list(answer.notes)}).to_dict()
    assert [note.replace("max_tokens", "max_new_tokens") for note in answer.notes] == expected["notes"]


def inputs_of(processor, question, **reading):
    """Model inputs of a question from the pipeline, and from the request as a server reads it."""
    expected = prepare_question(processor, question, **reading)["model_inputs"]
    request = build_request(question, processor, model="m", **reading)
    served = served_inputs(json.loads(json.dumps(request.payload))["messages"], processor)
    assert request.context.prompt_tokens == served["input_ids"].shape[1]
    return expected, served, request


def film(tmp_path, frames=37):
    path = tmp_path / "film.mp4"
    write_video(path, moving_frames(frames, 72, 96), fps=10)
    return str(path)


def test_requests_contain_the_pixels_that_the_processor_samples(processor, tmp_path):
    path, frames = film(tmp_path), moving_frames(23, 40, 60)
    images = tmp_path / "frames"
    images.mkdir()
    for index, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(images / f"{index}.png")
    turned = PIL.Image.fromarray(frames[0])
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    transparent = PIL.Image.fromarray(np.dstack([frames[0], np.arange(2400).reshape(40, 60) % 256]).astype(np.uint8))
    transparent.save(tmp_path / "transparent.png")
    with open(path, "rb") as file:
        content = file.read()
    media = [
        {"video": path},
        {"video": content},
        {"video": f"file://{path}"},
        {"video": path, "clip": [5, 30]},
        {"video": path, "clip": [5, 9]},
        {"video": path, "start": 0.51, "end": 2.0},
        {"video": frames, "fps": 5},
        {"video": [PIL.Image.fromarray(frame) for frame in frames], "timestamps": np.cumsum(np.arange(1, 24) / 10).tolist()},
        {"video": str(images), "fps": 5, "clip": [2, 20]},
        {"image": str(tmp_path / "turned.jpg")},
        {"image": str(tmp_path / "transparent.png")},
        {"image": transparent},
        {"image": frames[0]},
    ]
    for medium in media:
        expected, served, request = inputs_of(processor, {**medium, "text": "What happens?"})
        name = "pixel_values" if "image" in medium else "pixel_values_videos"
        assert torch.equal(served[name], expected[name]), medium
        assert torch.equal(served["input_ids"], expected["input_ids"])
        context = prepare_question(processor, {**medium, "text": "What happens?"})["context"]
        assert request.context.question == context


def test_large_files_are_sent_as_their_sampled_frames(processor, tmp_path):
    path = film(tmp_path)
    encoded = encode_video({"type": "video", "video": path}, {}, processor, {}, largest_file=1000)
    whole = encode_video({"type": "video", "video": path}, {}, processor, {})
    assert (encoded.url[:22], whole.url[:15]) == ("data:video/x-matroska;", "data:video/mp4;")
    assert encoded.info == whole.info
    pixels = [processor.video_processor([url], return_tensors="pt")["pixel_values_videos"] for url in (encoded.url, path)]
    assert torch.equal(*pixels)


def test_lossless_video_of_noise_has_equal_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (5, 37, 51, 3)).astype(np.uint8)
    video = type(tiny_processor().video_processor)(do_resize=False, do_rescale=False, do_normalize=False, num_frames=5)
    pixels = video([lossless_video(frames)], return_tensors="pt")["pixel_values_videos"][0]
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), frames)


def test_addresses_are_sent_where_the_server_reads_them_and_nothing_is_cut(processor, tmp_path):
    path = film(tmp_path)

    def url(**question):
        request = build_request({"video": path, "text": "What?", **question}, processor, model="m", media_urls=True)
        return request.payload["messages"][0]["content"][0]["video_url"]["url"]

    assert url() == f"file://{path}"
    assert url(clip=[0, 20]).startswith("data:")


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        ({"video": "film.mp4", "text": "x"}, {"num_frames": 7}, "7 frames are sampled of the video, but the server samples 10"),
        ({"video": np.random.default_rng(0).random((12, 40, 60, 3)), "text": "x", "fps": 2}, {}, "cannot be sent without loss"),
        ({"video": "film.mp4", "text": "x"}, {"max_tokens": 0}, "max_tokens must be a whole number of at least 1, got 0"),
        ({"video": "film.mp4", "text": "x"}, {"exact": True}, "exact=True needs rows"),
        ({"video": "film.mp4", "task": "tr", "span": (1, 99)}, {}, r"span=\(1.0, 99.0\) is outside the clip"),
        ({"video": "film.mp4", "text": "at <t99s>"}, {}, "<t99s> is outside the clip"),
        ({"video": "film.mp4", "text": "<video> again"}, {}, "The text contains <video>"),
        ({"video": "film.mp4", "text": "a <|im_end|> b"}, {}, "special token '<|im_end|>'"),
        ({"video": np.zeros((12, 40, 60, 3), np.uint8), "text": "at <t1s>"}, {}, "frame rate of the video is unknown"),
        ([{"role": "user", "content": "hello"}], {"constrained": True}, "needs a question about an image or video"),
        ([user({"type": "video"}, "x")], {}, "needs its video"),
    ],
)
def test_invalid_questions_are_errors_before_a_request(processor, tmp_path, question, options, message):
    if isinstance(question, dict) and isinstance(question["video"], str):
        question = {**question, "video": film(tmp_path)}
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        build_request(question, processor, model="m", **options)


FRACTIONS = st.floats(0, 1).map(lambda value: f"{value:.4f}")
COORDINATES = st.one_of(
    st.tuples(st.sampled_from("thw"), FRACTIONS).map(lambda pair: f"<{pair[0]}{pair[1]}>"),
    st.floats(0, 3.6).map(lambda value: f"<t{value:.3f}s>"),
    st.floats(0, 72).map(lambda value: f"<h{value:.2f}px>"),
    st.sampled_from(["<TEMP-007>", "<WIDTH-099>", "<HEIGHT-000>"]),
)
TEXTS = st.lists(st.one_of(COORDINATES, st.text("ab <>é{[:", max_size=6)), min_size=1, max_size=8)


@pytest.mark.parametrize("ignored", [False, True])
def test_requests_have_the_prompt_tokens_of_the_processor(tmp_path, ignored):
    processor = tiny_processor(num_frames=2, ignore_prompt_x_coordinates=ignored)
    path = film(tmp_path)
    box, span = {"type": "box", "box": [1, 2, 30.5, 40]}, {"type": "span", "start": 0.5, "end": 2.25}
    picture = {"type": "image", "image": moving_frames(1, 30, 50)[0]}

    @settings(max_examples=25)
    @given(TEXTS, TEXTS, TEXTS)
    def check(first, second, third):
        film_item = {"type": "video", "path": path}
        chat = [
            {"role": "system", "content": "Answer."},
            user(film_item, "".join(first) + ".", span, box),
            {"role": "assistant", "content": f"{''.join(second)}<w0.31>."},
            user("See <w12px>", picture, *third, {"type": "time", "time": 1.2} if ignored else "and"),
        ]
        try:
            expected = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        except ValueError as error:
            with pytest.raises(ValueError) as found:
                build_request(chat, processor, model="m")
            assert str(found.value) == str(error)
            return
        request = build_request(chat, processor, model="m")
        served = served_inputs(request.payload["messages"], processor)
        assert torch.equal(served["input_ids"], expected["input_ids"])
        assert request.context.question.medium == expected.media_info[0][-1]
        assert request.context.prompt_tokens == expected["input_ids"].shape[1]

    check()


def test_constrained_request_has_a_well_formed_answer(model, processor, tmp_path):
    question = {"video": film(tmp_path), "task": "tvg", "text": "a cat"}
    with serve_openai(model, processor) as server, ask(server, processor) as client:
        free, constrained = client(question, max_tokens=30), client(question, constrained=True, max_tokens=30)
    assert server.requests[1]["structured_outputs"] == {"regex": answer_regex("tvg", 100, 100)}
    assert len(free.notes) > 1
    assert [note.split(" after")[0] for note in constrained.notes] == ["The answer was cut off"]


# Exact positions


def test_exact_coordinates_have_the_embeddings_of_the_model(folder):
    model = LlavaSTForConditionalGeneration.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32)
    processor, rows = LlavaSTProcessor.from_pretrained(DEMO_MODEL_PATH), CoordinateRows.from_checkpoint(DEMO_MODEL_PATH, torch.float32)
    text = "From <t1.23s> in [<w0.3><h0.25><w0.7><h40.5px>] to <t1.0> or <TEMP-005>?"
    question = {"video": str(folder / "clip.mp4"), "text": text}
    inputs = prepare_question(processor, question)["model_inputs"]
    request = build_request(question, processor, model="m", exact=True, rows=rows)
    sent = []
    for item in request.payload["messages"][0]["content"]:
        if item["type"] == "prompt_embeds":
            sent.append(torch.load(io.BytesIO(base64.b64decode(item["data"])), weights_only=True))
    expected, _ = model.model.embed_inputs(inputs["input_ids"], inputs["coordinate_values"])
    places = ~torch.isnan(inputs["coordinate_values"])
    assert (places.sum(), len(sent)) == (6, 5)  # <t1.0> is the last bin
    assert torch.equal(torch.cat(sent), expected[places][:5])
    texts = "".join(item["text"] for item in request.payload["messages"][0]["content"] if item["type"] == "text")
    assert texts == "From  in [] to <TEMP-099> or <TEMP-005>?"


def test_exact_request_to_a_server_without_embeddings_is_an_error(model, processor):
    rows = CoordinateRows(torch.randn(300, 8), model.config)
    question = {**QUESTION, "task": None, "text": "At <w0.123>?"}
    with serve_openai(model, processor) as server, ask(server, processor, rows=rows) as client, pytest.raises(RequestError) as error:
        client(question, exact=True)
    assert "prompt_embeds" in str(error.value)
    assert error.value.status == 400


# Answers


def response(request, text="hello", **changes):
    choice = {"message": {"content": text}, "finish_reason": "stop", **changes}
    return {"choices": [choice], "usage": {"prompt_tokens": request.context.prompt_tokens, "completion_tokens": 7}}


def test_read_response_states_that_an_answer_was_cut_off(processor):
    request = build_request(QUESTION, processor, model="m")
    answer = read_response(response(request, "[<WIDTH-010>", finish_reason="length"), request.context)
    assert answer.notes[-1] == "The answer was cut off after 7 tokens. Increase max_tokens to get all of it."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(choices=[]), "must have one choice, got 0 choices"),
        (lambda body: body.update(choices=None), "must have one choice"),
        (lambda body: body.update(error={"message": "out of memory"}), "out of memory"),
        (lambda body: body["choices"][0].update(finish_reason="abort"), "finish_reason='abort'"),
        (lambda body: body["choices"][0].update(message={"content": None}), "must have a message with text"),
        (lambda body: body["choices"][0].update(message={"content": "half \ud800"}), "is not valid Unicode"),
        (lambda body: body["usage"].update(prompt_tokens=32), "counted 32 prompt tokens"),
    ],
)
def test_invalid_responses_are_errors(processor, change, message):
    request = build_request(QUESTION, processor, model="m")
    body = response(request)
    read_response(body, request)
    change(body)
    with pytest.raises(RequestError, match=message):
        read_response(body, request)


# Connections and faults


def test_map_answers_in_order_on_all_connections_with_failures_in_their_place(model, processor):
    images = [np.full((20, 30 + 10 * number, 3), number, np.uint8) for number in range(9)]
    questions = [{**QUESTION, "image": image} for image in images]
    questions.insert(4, FAILED)
    with serve_openai(model, processor, delay=0.1) as server, ask(server, processor, connections=4) as client:
        answers = list(client.map(iter(questions), max_tokens=2))
    failure = answers.pop(4)
    assert isinstance(failure, FileNotFoundError)
    assert [answer.media.width for answer in answers] == [30 + 10 * number for number in range(9)]
    assert server.most_active == 4


def test_map_that_is_left_asks_no_more_questions(model, processor):
    with serve_openai(model, processor) as server, ask(server, processor, connections=2) as client:
        answers = client.map((QUESTION for _ in range(100)), max_tokens=1)
        next(answers)
        answers.close()
        time.sleep(0.1)
        assert len(server.requests) < 8


def test_lists_of_values_are_several_questions(model, processor):
    with serve_openai(model, processor) as server, ask(server, processor) as client:
        answers = client(QUESTION["image"], text=["a dog", "a cat"], task="rec", max_tokens=2)
        assert [answer.query for answer in answers] == ["a dog", "a cat"]
        with pytest.raises(FileNotFoundError):
            client([QUESTION, FAILED], max_tokens=2)


@pytest.mark.parametrize("faults", [[503, 500], [429, (429, {"Retry-After": "0"})], ["close", 502]])
def test_temporary_failures_are_asked_again(model, processor, short_waits, faults):
    with serve_openai(model, processor, faults=list(faults)) as server, ask(server, processor) as client:
        client(QUESTION, max_tokens=1)
    assert len(server.requests) == 3


def test_retry_after_is_kept(model, processor, short_waits):
    with serve_openai(model, processor, faults=[(503, {"Retry-After": "1"})]) as server, ask(server, processor) as client:
        start = time.monotonic()
        client(QUESTION, max_tokens=1)
        assert time.monotonic() - start >= 1
        server.faults.append((503, {"Retry-After": "3600"}))
        with pytest.raises(RequestError, match="asks to wait for 3600 seconds"):
            client(QUESTION)


@pytest.mark.parametrize(
    ("fault", "status", "attempts", "message"),
    [
        (400, 400, 1, "Status 400 was asked for"),
        (503, 503, 3, r"Status 503 was asked for \(3 attempts\)\."),
        ("close", None, 3, "The connection to .* was lost"),
        ("invalid", 200, 1, "not JSON"),
        ("hang", None, 1, "did not answer within 0.3 seconds"),
        ((307, {"Location": "http://user:secret@127.0.0.1:9/?token=secret"}), 307, 1, "redirect to '127.0.0.1', which is not followed"),
    ],
)
def test_lasting_failures_are_errors_with_status_and_attempts(model, processor, short_waits, fault, status, attempts, message):
    with serve_openai(model, processor, faults=[fault] * 3) as server:
        with ask(server, processor, max_retries=2, timeout=0.3) as client, pytest.raises(RequestError, match=message) as error:
            client(QUESTION, max_tokens=1)
        assert (error.value.status, error.value.attempts, len(server.requests)) == (status, attempts, attempts)
        assert "secret" not in str(error.value)
        server.faults.clear()
        with ask(server, processor) as client:  # the server answers others
            client(QUESTION, max_tokens=1)
    copy = pickle.loads(pickle.dumps(error.value))
    assert (str(copy), copy.status, copy.attempts) == (str(error.value), status, attempts)


TOMORROW = email.utils.format_datetime(datetime.now(timezone.utc) + timedelta(days=1), usegmt=True)


@pytest.mark.parametrize(
    ("sent", "kind", "retry_after", "message"),
    [
        (reply(b"x" * 10**6), "RequestError", None, "sent more than 200000 bytes"),
        (reply(b"[" * 10**5, status="500 Error"), "HTTP 500", None, "status 500"),
        (reply(b"[" * 10**5), "RequestError", None, "not JSON"),
        (reply(b"no gzip", "Content-Encoding: gzip"), "RequestError", None, "cannot be decompressed"),
        (redirect("http://[secret"), "HTTP 302", None, "a redirect to an invalid address"),
        (reply(b"{}", f"Retry-After: {TOMORROW}", status="503 Busy"), "HTTP 503", 86400, "status 503"),
        (reply(b"{}", "Retry-After: soon", status="408 Late"), "HTTP 408", None, "status 408"),
        (None, "TimeoutError", None, "did not answer within 0.5 seconds"),
    ],
    ids=["large", "deep-error", "deep", "gzip", "redirect", "date", "no-date", "drip"],
)
def test_response_that_is_no_answer_is_a_failure_of_its_kind(monkeypatch, sent, kind, retry_after, message):
    monkeypatch.setattr(http, "LARGEST_BODY", 200000)

    def answer(connection, target):
        if sent is None:  # the body does not end, and each of its bytes is in time
            connection.sendall(reply(b"", length=None))
            server.drip(connection, b" ")
        else:
            connection.sendall(sent)

    with serve(answer) as server, pytest.raises(http.Failure, match=message) as raised:
        http.Api(server.url, None, 1, 0.5).send("GET", "/models")
    failure = raised.value
    assert (failure.kind, failure.temporary) == (kind, kind in ("HTTP 500", "HTTP 503", "HTTP 408"))
    assert failure.retry_after == (None if retry_after is None else pytest.approx(retry_after, abs=3600))


def test_server_that_is_not_there_is_an_error(processor, short_waits):
    client = GroundingClient("http://127.0.0.1:9/v1", model="m", processor=processor, max_retries=1)
    with client, pytest.raises(RequestError, match="cannot be reached"):
        client(QUESTION)


def test_address_without_v1_is_an_error_that_states_the_address(processor):
    with serve(lambda connection, target: connection.sendall(reply(b'{"detail": "Not Found"}', status="404 Not Found"))) as server:
        for end, advised in (("", True), ("/v1", False)):
            address = server.url.rstrip("/") + end
            with GroundingClient(address, processor=processor) as client, pytest.raises(RequestError, match="status 404") as error:
                client(QUESTION)
            assert (f'ends in "/v1": {address}/v1' in str(error.value)) == advised


def test_processor_that_is_not_a_folder_is_an_error_that_names_it(tmp_path):
    with (
        GroundingClient("http://127.0.0.1:9/v1", model="m", processor=tmp_path / "nowhere") as client,
        pytest.raises(ValueError, match=r"The processor '.*nowhere' is not a folder"),
    ):
        client(QUESTION)


def test_key_is_sent_and_not_shown(model, processor, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    with serve_openai(model, processor, api_key="sk-right") as server:
        for key in ("sk-wrong", None):
            with ask(server, processor, api_key=key) as client, pytest.raises(RequestError) as error:
                client(QUESTION)
            assert error.value.status == 401 and "Bearer [api_key]" in str(error.value)
            assert "sk-" not in repr(client) + repr(error.value) + repr(error.value.__cause__)
        with ask(server, processor, api_key="sk-right") as client:
            client(QUESTION, max_tokens=1)
    with pytest.raises(ValueError) as invalid:
        GroundingClient("http://me:sk-inside@127.0.0.1/v1", model="m", processor=processor)
    assert "sk-inside" not in str(invalid.value)


def test_model_and_processor_are_found_by_the_name_on_the_server(model, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    with serve_openai(model, processor, name=str(tmp_path)) as server, GroundingClient(server.url) as client:
        assert client(QUESTION, max_tokens=1).media.width == 30
    with (
        serve_openai(model, processor, name="unknown") as server,
        GroundingClient(server.url) as client,
        pytest.raises(ValueError) as error,
    ):
        client(QUESTION)
    assert "'unknown', is not a folder here" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "address of a server must have the form"),
        ({"connections": 0}, "connections must be a whole number of at least 1, got 0"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds above 0"),
        ({"max_retries": -1}, "max_retries must be a whole number of at least 0"),
        ({"api_key": "a\nb"}, "api_key must consist of printable ASCII"),
    ],
)
def test_invalid_settings_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroundingClient(**{"base_url": "http://127.0.0.1:1/v1", "model": "m", **arguments})


# Chat template


@pytest.mark.parametrize("text", ["at <t1.8s>", "in <w320px>", "<h0.4>", "<t.5e-1>", "<tnan>", "<w>"])
def test_server_refuses_coordinates_that_no_processor_reads(model, processor, text):
    with serve_openai(model, processor) as server:
        body = {"model": "llava-st", "messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}
        reply = httpx.post(f"{server.url}/chat/completions", json=body, timeout=60)
        assert reply.status_code == 400
        message = reply.json()["error"]["message"]
        assert text[text.index("<") :] in message and "GroundingClient" in message
        body["messages"][0]["content"] = "a <TEMP-012> <table> <the> <he> 1 <t and 2> <h1 class=x>"
        assert httpx.post(f"{server.url}/chat/completions", json=body, timeout=60).status_code == 200


@given(st.text("thws px019.eE+-naif<>", max_size=12))
def test_template_refuses_every_inline_coordinate(text):
    from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE
    from llava_st_hf.model.inline_spelling_llava_st import check_spelling

    processor = PROCESSOR
    try:
        processor.tokenizer.apply_chat_template([{"role": "user", "content": text}], chat_template=processor.chat_template, tokenize=False)
        refused = False
    except Exception as error:
        assert "which a server does not convert" in str(error)
        refused = True
    if refused and INLINE_COORDINATE.search(text) is None:  # then it is a coordinate that is misspelt
        with pytest.raises(ValueError):
            check_spelling(text)
    elif not refused:
        assert INLINE_COORDINATE.search(text) is None


PROCESSOR = tiny_processor()


@pytest.mark.parametrize(
    "item", [{"type": "span", "start": 1, "end": 2}, {"type": "box", "box": [1, 2, 3, 4]}, {"type": "time", "time": 1}]
)
def test_template_refuses_spans_boxes_and_times(processor, item):
    with pytest.raises(Exception, match="Servers do not convert spans, times and boxes"):
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": [item]}], chat_template=processor.chat_template, tokenize=False
        )
