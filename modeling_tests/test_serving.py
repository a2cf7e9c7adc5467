# SPDX-License-Identifier: Apache-2.0
"""`llava-st serve` without vLLM: refusals, the command line of vLLM, and its middleware. Tests with vLLM are in modeling_tests/serving/."""

import asyncio
import json
import os
import shlex
import shutil
import socket
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.checkpoints.fingerprint import FINGERPRINT, read_fingerprint
from llava_st_hf.cli import main
from llava_st_hf.serving import command, transformers_serve
from llava_st_hf.serving.arguments import ServerOptions
from llava_st_hf.serving.checks import check_address, check_vllm_version, is_loopback
from llava_st_hf.serving.startup_check import REPORT, WITHOUT_FINGERPRINT, StartupCheck
from llava_st_hf.serving.upload_limit import LIMIT, UploadLimit
from modeling_tests.reference import ORIGINAL_CHECKPOINT


@pytest.fixture
def folder(tmp_path) -> str:
    """A copy of the demo model without weights, which no command here may read."""
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL_PATH, folder)
    return str(folder)


def refusal(capsys, *argv) -> str:
    assert main(["serve", *map(str, argv)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def dry_run(capsys, *argv) -> tuple[dict[str, str], list[str]]:
    """Environment and arguments that `--dry-run` prints."""
    assert main(["serve", *argv[:1], "--dry-run", *argv[1:]]) == 0
    words = shlex.split(capsys.readouterr().out)
    at = words.index("vllm")
    return dict(word.split("=", 1) for word in words[:at]), words[at:]


def values(words: list[str], flag: str) -> list[str]:
    return [after for word, after in pairwise(words) if word == flag]


# Checkpoints


def test_serve_missing_folder_is_refused(capsys, tmp_path):
    assert "nowhere is not a folder" in refusal(capsys, tmp_path / "nowhere")
    assert "has no config.json" in refusal(capsys, tmp_path)


def test_serve_original_layout_is_refused_with_the_command_that_converts_it(capsys):
    line = refusal(capsys, ORIGINAL_CHECKPOINT)
    assert "layout of the original code" in line and f"`llava-st convert {ORIGINAL_CHECKPOINT} FOLDER`" in line


def test_serve_adapter_is_refused_with_the_command_that_merges_it(capsys, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert f"`llava-st merge-lora {tmp_path} {tmp_path}-merged`" in refusal(capsys, tmp_path)


def test_serve_other_model_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert "a model of type 'qwen2', not a LLaVA-ST model" in refusal(capsys, tmp_path)


def test_serve_checkpoint_without_fingerprint_is_refused_unless_it_is_allowed(capsys, folder, tmp_path):
    (tmp_path / "model" / FINGERPRINT).unlink()
    assert f"`llava-st fingerprint {folder}`" in refusal(capsys, folder, "--dry-run")
    environment, _ = dry_run(capsys, folder, "--without-fingerprint")
    assert environment[WITHOUT_FINGERPRINT] == "1"


def test_serve_chat_template_of_an_earlier_version_is_refused_unless_another_is_given(capsys, folder, tmp_path):
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert f"The chat template of {folder} does not refuse coordinates" in refusal(capsys, folder, "--dry-run")
    assert dry_run(capsys, folder, "--", "--chat_template=own.jinja")[1][-1] == "--chat_template=own.jinja"


def test_serve_without_vllm_names_the_extra(capsys, folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert refusal(capsys, folder) == "llava-st: `llava-st serve` needs vLLM: pip install 'llava-st-hf[serve]'."


@pytest.mark.parametrize("version", ["0.31.2", "0.34.0", "1.0"])
def test_serve_untried_version_of_vllm_is_refused(version):
    with pytest.raises(ImportError, match=f"vLLM {version} is installed"):
        check_vllm_version(version)
    check_vllm_version("0.32.0")
    check_vllm_version("0.33.1+cu130")


# Options


def test_serve_dry_run_prints_a_closed_loopback_server_in_the_dtype_of_the_checkpoint(capsys, folder):
    environment, words = dry_run(capsys, folder)
    assert words[:3] == ["vllm", "serve", folder]
    expected = {"--host": "127.0.0.1", "--port": "8000", "--dtype": "float32", "--max-model-len": "4096", "--served-model-name": folder}
    assert {flag: values(words, flag)[0] for flag in expected} == expected
    assert json.loads(values(words, "--limit-mm-per-prompt")[0]) == {"image": 1, "video": 1}
    assert values(words, "--allowed-media-domains")[0].endswith(".invalid") and "--allowed-local-media-path" not in words
    assert json.loads(values(words, "--override-generation-config")[0]) == {"temperature": 0}  # `generate` is greedy
    assert "--enable-prompt-embeds" in words  # the demo model has rows to spare, and only this computer can connect
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0" and environment[LIMIT] == str(256 * 2**20)


def test_serve_options_and_flags_of_vllm_are_passed_on(capsys, folder, tmp_path):
    options = ["--host", "0.0.0.0", "--port", "81", "--dtype", "bfloat16", "--name", "st", "--max-videos", "2", "--max-upload", "5"]
    media = ["--media-domain", "a.example", "--media-domain", "b.example", "--media-folder", str(tmp_path)]
    flags = ["--mm-processor-kwargs", '{"allow_truncated": true}', "--api-key", "k", "--enforce-eager"]
    environment, words = dry_run(capsys, folder, *options, *media, "--", *flags)
    assert words[-5:] == flags
    expected = {"--host": "0.0.0.0", "--port": "81", "--dtype": "bfloat16", "--served-model-name": "st"}
    assert {flag: values(words, flag)[0] for flag in expected} == expected
    assert json.loads(values(words, "--limit-mm-per-prompt")[0]) == {"image": 1, "video": 2}
    at = words.index("--allowed-media-domains")
    assert words[at : at + 5] == ["--allowed-media-domains", "a.example", "b.example", "--allowed-local-media-path", str(tmp_path)]
    assert "--enable-prompt-embeds" not in words  # others can connect
    assert environment[LIMIT] == str(5 * 2**20)
    assert "--enable-prompt-embeds" in dry_run(capsys, folder, "--host", "0.0.0.0", "--prompt-embeds")[1]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-model-len", 500], "A length of 500 tokens (--max-model-len) is too small"),
        (["--max-videos", 16], "--max-videos 16 (252 each) with a question"),
        (["--max-model-len", 5000], "--max-model-len 5000 is more than the 4096 tokens of the decoder"),
        (["--max-model-len", 0], "--max-model-len must be at least 1, got 0"),
        (["--media-folder", "nowhere"], "--media-folder nowhere is not a folder"),
        (["--", "--port", 3], "--port after `--` is not passed to vLLM: use --port of `llava-st serve`"),
        (["--", "--allowed_media_domains=x"], "use --media-domain of `llava-st serve`"),
        (["--", "--headless"], "--headless of vLLM cannot be used"),
        (["--", "--hos", "0.0.0.0"], "--hos may be an abbreviation of --host"),
        (["--", "--mm-processor-kw", '{"fps": 2}'], "--mm-processor-kw may be an abbreviation of --mm-processor-kwargs"),
        (["--", "--revision", "v2"], "--revision has no effect on a folder"),
        (["--", "--override-generation-config", '{"top_p": 0.9}'], 'Add a "temperature"'),
        (["--media-domain", "https://a.example"], "--media-domain https://a.example must be the name of a host"),
        (["--media-domain", "a.example:8080"], "--media-domain a.example:8080 must be the name of a host"),
        (["--", "--mm-processor-kwargs", '{"videos_kwargs": {"num_frames": 7}}'], "--mm-processor-kwargs with num_frames samples other"),
        (["--", '--mm_processor_kwargs={"fps": 2}'], "--mm-processor-kwargs with fps samples other"),
        (["--", "--mm-processor-kwargs.num_frames", 7], "--mm-processor-kwargs with num_frames samples other"),
    ],
)
def test_serve_wrong_options_are_refused(capsys, folder, options, message):
    from llava_st_cli.main import main as program

    assert program(["serve", folder, "--dry-run", *map(str, options)]) == 1
    assert message in capsys.readouterr().err


def test_serve_checkpoint_whose_generate_samples_keeps_its_sampling(capsys, folder, tmp_path):
    (tmp_path / "model" / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.7}')
    flags = ["--override-generation-config", '{"top_p": 0.9}']
    words = dry_run(capsys, folder, "--", *flags)[1]
    assert values(words, "--override-generation-config") == flags[1:]


def test_serve_prompt_embeds_without_a_spare_row_is_refused(capsys, folder, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.__len__", lambda tokenizer: 960)
    assert "--enable-prompt-embeds" not in dry_run(capsys, folder)[1]
    assert "--prompt-embeds needs a row" in refusal(capsys, folder, "--prompt-embeds")


def test_address_in_use_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OSError, match=rf"--port {port}: the address cannot be used: .*in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(ValueError, match="--port 70000 must be"):
        check_address("127.0.0.1", 70000)
    assert is_loopback("localhost") and is_loopback("::1") and not is_loopback("0.0.0.0")


def test_transformers_serve_samples_the_frames_of_the_checkpoint(folder):
    assert transformers_serve.arguments([folder, "--port", "81"]) == [
        "serve", folder, "--chat-template-kwargs", '{"num_frames": 20}', "--port", "81",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--continuous-batching of `transformers serve` is not supported"):
        transformers_serve.arguments([folder, "--continuous-batching"])
    with pytest.raises(ValueError, match="The checkpoint is missing"):
        transformers_serve.arguments(["--port", "81"])


# Middleware


class Answers:
    """An ASGI application as vLLM's is, whose model answers with given tokens."""

    def __init__(self, model: str, token_ids: list[int], dtype: torch.dtype = torch.float32, status: int = 200):
        engine = SimpleNamespace(errored=False)
        model_config = SimpleNamespace(dtype=dtype)
        arguments = SimpleNamespace(model=model, served_model_name=["st"], api_key=["secret"])
        config = SimpleNamespace(model_config=model_config, quant_config=None)
        self.state = SimpleNamespace(engine_client=engine, args=arguments, vllm_config=config)
        self.token_ids, self.status = token_ids, status
        self.asked: list[tuple[dict, dict]] = []
        self.has_ended = False

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            self.has_ended = True
            return await send({"type": "lifespan.shutdown.complete"})
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client has disconnected")
            body, more = body + message["body"], message.get("more_body", False)
        self.asked.append((dict(scope["headers"]), json.loads(body)))
        answer = json.dumps({"choices": [{"token_ids": self.token_ids}]}).encode()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": answer})


def lifespan(application: Answers, died: bool = False) -> list[dict]:
    """Starts and ends an application with the check, as uvicorn does: what it sends."""
    sent: list[dict] = []

    async def run():
        received = asyncio.Queue()
        await received.put({"type": "lifespan.startup"})

        async def send(message):
            sent.append(message)
            if message["type"] == "lifespan.startup.complete":
                application.state.engine_client.errored = died
                await received.put({"type": "lifespan.shutdown"})

        await StartupCheck(application)({"type": "lifespan", "app": application}, received.get, send)

    asyncio.run(run())
    return sent


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setenv(REPORT, str(tmp_path / "report"))
    monkeypatch.delenv(WITHOUT_FINGERPRINT, raising=False)
    return tmp_path / "report"


def test_startup_check_equal_answer_starts_the_server(report):
    fingerprint = read_fingerprint(DEMO_MODEL_PATH)
    application = Answers(DEMO_MODEL_PATH, fingerprint.token_ids)
    assert [message["type"] for message in lifespan(application)] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    ((headers, body),) = application.asked
    assert headers[b"authorization"] == b"Bearer secret" and body["model"] == "st" and body["temperature"] == 0
    video, text = body["messages"][0]["content"]
    assert video["video_url"]["url"].startswith("data:video/mp4;base64,") and text == fingerprint.messages[0]["content"][1]
    assert body["max_completion_tokens"] == len(fingerprint.token_ids) and not report.exists()


def test_startup_check_other_answer_ends_the_server_with_a_report(report):
    ids = list(read_fingerprint(DEMO_MODEL_PATH).token_ids)
    ids[0] += 1
    application = Answers(DEMO_MODEL_PATH, ids)
    (message,) = lifespan(application)
    assert message["type"] == "lifespan.startup.failed" and "differs from that of the checkpoint at token 1" in message["message"]
    assert application.has_ended and report.read_text() == f"{message['message']}\n"


@pytest.mark.parametrize("ending", [SystemExit(3), RuntimeError("Process ApiServer_1 (PID: 1) died with exit code 3")])
def test_serve_failed_startup_raises_the_report_and_not_the_status_of_a_process(folder, monkeypatch, ending):
    def end(arguments):
        Path(os.environ[REPORT]).write_text("The answer differs.\n")
        raise ending

    monkeypatch.setattr(command, "_vllm_serve", end)
    monkeypatch.setattr(command, "check_vllm", lambda: None)
    monkeypatch.setattr(command, "check_address", lambda host, port: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ValueError, match=r"^The answer differs\.$"):
        command.serve(folder, ServerOptions())


def test_startup_check_error_of_the_server_ends_it(report):
    (message,) = lifespan(Answers(DEMO_MODEL_PATH, [], status=500))
    assert message["type"] == "lifespan.startup.failed" and "answered with status 500" in report.read_text()


def test_startup_check_checkpoint_without_fingerprint_is_served_only_if_it_is_allowed(report, folder, tmp_path, monkeypatch):
    (tmp_path / "model" / FINGERPRINT).unlink()
    (message,) = lifespan(application := Answers(folder, []))
    assert message["type"] == "lifespan.startup.failed" and "has no fingerprint" in message["message"]
    monkeypatch.setenv(WITHOUT_FINGERPRINT, "1")
    assert lifespan(application)[0]["type"] == "lifespan.startup.complete" and not application.asked


def test_startup_check_engine_that_has_died_is_reported(report):
    lifespan(Answers(DEMO_MODEL_PATH, read_fingerprint(DEMO_MODEL_PATH).token_ids), died=True)
    assert "The engine of vLLM has ended" in report.read_text()


def post(application, chunks: list[bytes], headers: list[tuple[bytes, bytes]] = ()) -> list[dict]:
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    async def run():
        messages = [{"type": "http.request", "body": chunk, "more_body": n < len(chunks)} for n, chunk in enumerate(chunks, 1)]
        received = iter(messages)

        async def receive():
            return next(received)

        await application({"type": "http", "headers": list(headers)}, receive, send)
        assert next(received, None) is None  # a client that still sends does not read the answer

    asyncio.run(run())
    return sent


@pytest.mark.parametrize("has_length", [True, False])
def test_upload_limit_refuses_a_larger_body(monkeypatch, has_length):
    monkeypatch.setenv(LIMIT, "100")
    application = Answers(DEMO_MODEL_PATH, [])
    body = json.dumps({"text": "x" * 130}).encode()
    headers = [(b"content-length", str(len(body)).encode())] if has_length else []
    start, end = post(UploadLimit(application), [body[:60], body[60:110], body[110:]], headers)
    assert start["status"] == 413 and "larger than 100 bytes" in json.loads(end["body"])["error"]["message"]
    assert not application.asked


def test_upload_limit_passes_a_body_of_the_limit(monkeypatch):
    body = json.dumps({"text": "x" * 80}).encode()
    monkeypatch.setenv(LIMIT, str(len(body)))
    application = Answers(DEMO_MODEL_PATH, [])
    assert post(UploadLimit(application), [body[:60], body[60:]])[0]["status"] == 200
    assert application.asked[0][1] == json.loads(body)
