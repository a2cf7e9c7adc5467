# SPDX-License-Identifier: Apache-2.0
"""`llava-st batch`: one output row for each row of the manifest, whatever fails and whichever process is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from llava_st_cli.main import main
from llava_st_hf.batch import read_answers, servers
from llava_st_hf.batch.command import checkpoint_hash
from llava_st_hf.batch.local import PipelineAnswering
from llava_st_hf.batch.manifest import read_manifest
from llava_st_hf.batch.outcomes import Outcome, read_outcomes, write_outcomes
from llava_st_hf.batch.run import answer_shards
from llava_st_hf.batch.servers import NoServerError, Servers
from llava_st_hf.batch.state import Shard, Store
from llava_st_hf.batch.storage import Folder
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.model.results_llava_st import Box, Event, Grounding
from modeling_tests.media import moving_frames, write_video
from modeling_tests.openai_server import OpenAIServer, serve_openai
from modeling_tests.processors import model_for, tiny_processor


@pytest.fixture(scope="module")
def answering_model():
    processor = tiny_processor()
    return model_for(processor), processor


@pytest.fixture
def server(answering_model):
    with serve_openai(*answering_model) as running:
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working folder with a video, an image, and a file that is not a video."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", moving_frames(6, 32, 48), fps=10)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.png")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    return tmp_path


def write_manifest(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(count: int) -> list[dict]:
    return [{"id": f"q{n}", "video": "a.mp4", "text": f"Question {n}?", "extra": n} for n in range(count)]


def run(server: OpenAIServer, checkpoint: str, *options: str) -> int:
    servers = [option for url in server.url.split() for option in ("--server", url)]
    return main(["batch", "m.jsonl", "out", "--model", checkpoint, *servers, "--max-new-tokens", "4", "--connections", "4", *options])


def rows(output: str = "out") -> list[dict]:
    return [row for row, _ in read_answers(output)]


def asked(server: OpenAIServer) -> list[str]:
    """Texts of the requests, without those of images and videos."""
    return [item["text"].strip() for body in server.requests for item in body["messages"][-1]["content"] if item["type"] == "text"]


# Manifests


def test_manifest_formats_give_the_same_questions(folder):
    rows = [
        {"id": "x", "video": "a.mp4", "task": "svg", "text": 'a "dog", small', "span": [0.1, 0.4], "clip": None, "note": "carried"},
        {"id": "y", "video": "a.mp4", "task": "tvg", "text": "a cat", "span": None, "clip": [0, 3], "note": None},
    ]
    write_manifest(folder / "m.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "m.parquet")
    (folder / "m.csv").write_text(
        'id,video,task,text,span,clip,note\r\nx,a.mp4,svg,"a ""dog"", small","[0.1, 0.4]",,carried\r\ny,a.mp4,tvg,a cat,,"[0, 3]",\r\n'
    )
    read = [read_manifest(str(folder / f"m.{suffix}")) for suffix in ("jsonl", "parquet", "csv")]
    video = str(folder / "a.mp4")
    expected = [
        {"video": video, "task": "svg", "text": 'a "dog", small', "span": [0.1, 0.4]},
        {"video": video, "task": "tvg", "text": "a cat", "clip": [0, 3]},
    ]
    assert [manifest.questions for manifest in read] == [expected] * 3
    assert [manifest.table["note"].to_pylist() for manifest in read] == [["carried", None]] * 3


def test_manifest_problems_are_listed_with_their_rows(folder):
    path = write_manifest(
        folder / "m.jsonl",
        [
            {"id": 1, "video": "a.mp4", "task": "tvg", "text": "a cat"},
            {"id": 1, "video": "a.mp4", "image": "b.png", "text": "both"},
            {"id": 2, "video": "a.mp4", "task": "tvg"},
            {"id": 3, "image": "b.png", "task": "stvg", "text": "a cat"},
            {"id": 4, "video": "a.mp4", "task": "tr", "span": [2, 1]},
            {"id": 5, "video": "a.mp4", "text": "at <t1.8 s>"},
            {"id": 6, "video": "a.mp4", "text": "x", "clip": [3, 1]},
            {"video": "a.mp4", "text": "x", "start": 2, "end": 1},
        ],
    )
    with pytest.raises(ValueError, match="has 9 problems") as error:
        read_manifest(path)
    message = str(error.value)
    assert "row 1:" not in message
    for part in ("row 2: An input must have exactly one", "row 3: task='tvg'", "row 4: task='stvg'", "row 5: The span from 2 to 1"):
        assert part in message
    for part in ("row 6: '<t1.8 s>'", "row 7: clip", "row 8: start must be before", "row 2: id 1 is that of row 1", "row 8: id must be"):
        assert part in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", '{"video": "a.mp4", "text": "x"}\n[1]\n', "row 2 is not a JSON object"),
        ("m.jsonl", '{"video": "a.mp4", "text": "x", "n": 1}\n{"video": "a.mp4", "text": "x", "n": "one"}\n', "The values of 'n'"),
        ("m.jsonl", "", "has no rows"),
        ("m.jsonl", '{"video": "a.mp4", "text": "x", "status": "ok"}\n', "the column status, which the output has"),
        ("m.jsonl", '{"video": "a.mp4", "text": "x", "text": "y"}\n', "the name 'text' occurs twice"),
        ("m.jsonl", '{"video": "a.mp4", "text": "x", "n": {}}\n', "the column 'n', which cannot be written"),
        ("m.jsonl", '{"video": "a.mp4", "text": "x", "n": %s}\n' % ("[" * 10**5), "maximum recursion depth"),
        ("m.csv", "video,text\na.mp4\n", "row 1 has 1 cells, the header has 2"),
        ("m.csv", "video,text,start\na.mp4,x,soon\n", "row 1: start must be a number, got 'soon'"),
        ("m.csv", "video,text,text\na.mp4,x,y\n", "each once"),
        ("m.parquet", "not Parquet", "is not a PARQUET file"),
        ("m.txt", "", "must be a file that ends in"),
    ],
)
def test_manifest_that_cannot_be_read_is_an_error(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_manifest(str(folder / name))


def test_batch_media_that_all_are_missing_are_an_error_before_the_first_request(folder, server, tiny_checkpoint, capsys):
    write_manifest(folder / "m.jsonl", questions(3))
    assert run(server, tiny_checkpoint, "--media-root", str(folder.parent)) == 1
    assert "None of the images and videos" in capsys.readouterr().err and not server.requests and not (folder / "out").exists()


# Files


def test_outcomes_are_read_as_written(tmp_path):
    media = MediaInfo("video", 64, 48, None, 0, 2, frame_times=(0.0, 0.1, 0.4), total_num_frames=3, notes=("a note",))
    boxes = (Box(1, 2, 3.5, 4, time=0.1, frame=1), Box(1, 2, 3, 4, time=0.4, frame=2, interpolated=True))
    answer = Grounding("text", (Event("a cat", 0.0, 0.4, boxes), Event(None)), media, ("one", "two"))
    outcomes = {
        7: Outcome(
            answer, finish_reason="length", prompt_tokens=5, completion_tokens=2, media_bytes=9, requests=2, latency_s=0.5, server="s"
        ),
        8: Outcome(error_type="HTTP 400", error=f"lone \ud800 surrogate{'.' * 10**6}", requests=1),
        9: Outcome(Grounding("", (Event("dog", boxes=(Box(0, 0, 1, 1),)),), MediaInfo("image", 4, 4)), requests=1),
    }
    table = pyarrow.table({"video": ["a", "b", "c"]})
    folder = Folder(str(tmp_path))
    info = write_outcomes(folder, "x.parquet", table, 7, outcomes, 0, "run", "session")
    read = read_outcomes(folder, "x.parquet")
    assert (read[7], read[9]) == (outcomes[7], outcomes[9])
    assert read[8].error.startswith("lone \\ud800 surrogate.") and len(read[8].error) < 5000 and read[8].answer is None
    assert (info.failures, info.requests, info.truncated, info.prompt_tokens) == ({"HTTP 400": 1}, 4, 1, 5)


class Recorder:
    """Answers with the text of the question, and raises an exception at one."""

    batch_size = 1

    def __init__(self, connections: int, stops_at: str | None = None, error: BaseException | None = None):
        self.connections, self.stops_at, self.error, self.asked = connections, stops_at, error, []

    def answer(self, questions):
        self.asked += [question["text"] for question in questions]
        if self.stops_at in self.asked[-1:]:
            raise self.error
        return [Outcome(Grounding(question["text"])) for question in questions]


@pytest.mark.parametrize(("connections", "error"), [(0, KeyboardInterrupt()), (2, NoServerError("none")), (3, KeyboardInterrupt())])
def test_stopped_run_keeps_its_answers_and_asks_only_the_others(tmp_path, connections, error):
    asked = [{"text": f"{row}"} for row in range(1, 21)]
    shards = [Shard(i, 2, 1 + 10 * i, pyarrow.table({"n": range(10 * i, 10 * i + 10)}), asked[10 * i : 10 * i + 10]) for i in range(2)]
    folder = Folder(str(tmp_path))
    first = Recorder(connections, "6", error)
    with pytest.raises(type(error)):
        answer_shards(shards, Store(folder, "run", "1"), first)
    assert not folder.names("answers") and len(folder.names("partial")) == 1
    second = Recorder(connections)
    answer_shards(shards, Store(folder, "run", "2"), second)
    answered_before = [text for text in first.asked if text != "6"]
    assert sorted(answered_before + second.asked, key=int) == [f"{row}" for row in range(1, 21)]
    assert [(row["row"], row["n"], answer.text) for row, answer in read_answers(str(tmp_path))] == [
        (n, n - 1, f"{n}") for n in range(1, 21)
    ]
    assert folder.names("partial") == []


# Servers


def test_batch_with_faults_has_one_row_for_each_row_and_retries_only_failed_ones(folder, server, tiny_checkpoint, capsys):
    given = questions(12)
    given[2]["video"], given[5]["video"] = "bad.mp4", "missing.mp4"
    given[7] = {"id": "q7", "image": "b.png", "task": "rec", "text": "the dog"}
    write_manifest(folder / "m.jsonl", given)
    server.faults = [400, (503, {"Retry-After": "0"}), "close", None, "invalid"]
    assert run(server, tiny_checkpoint, "--num-shards", "3", "--price-per-hour", "36") == 3
    found = rows()
    assert [(row["row"], row["id"], row["extra"]) for row in found] == [(n + 1, f"q{n}", given[n].get("extra")) for n in range(12)]
    failed = {row["error_type"] for row in found if row["status"] == "failed"}
    assert failed == {"OSError", "FileNotFoundError", "HTTP 400", "RequestError"}
    assert "bad.mp4 cannot be read as a video" in found[2]["error"] and "400 was asked for" in str([row["error"] for row in found])
    summary = json.loads((folder / "out/summary.json").read_text())
    assert (summary["answered"], summary["failed"], summary["requests"]) == (8, 4, len(server.requests)) and len(server.requests) == 12
    assert summary["truncated"] == sum(row["finish_reason"] == "length" for row in found) > 0
    assert summary["cost"] == pytest.approx(36 * summary["gpu_hours"], abs=1e-4) and summary["completion_tokens"] == 4 * 8
    assert sum(row["media_bytes"] or 0 for row in found) == summary["media_bytes"] > (folder / "a.mp4").stat().st_size
    server.requests.clear()
    assert run(server, tiny_checkpoint) == 3 and not server.requests
    write_video(folder / "missing.mp4", moving_frames(6, 32, 48), fps=10)
    assert run(server, tiny_checkpoint, "--retry-failed") == 3
    assert len(asked(server)) == len(set(asked(server))) == 3  # not the damaged video
    assert [row["status"] for row in rows()] == ["ok", "ok", "failed", *["ok"] * 9]
    assert rows()[2]["error_type"] == "OSError"


def test_batch_answers_are_those_of_the_pipeline(folder, server, tiny_checkpoint):
    write_manifest(folder / "m.jsonl", [*questions(2), {"id": "i", "image": "b.png", "task": "rec", "text": "the dog"}])
    assert run(server, tiny_checkpoint) == 0
    assert (
        main(["batch", "m.jsonl", "local", "--model", tiny_checkpoint, "--max-new-tokens", "4", "--device", "cpu", "--batch-size", "2"])
        == 0
    )
    (served, local) = ([answer for _, answer in read_answers(output)] for output in ("out", "local"))
    assert [(answer.text, answer.events, answer.media) for answer in served] == [(a.text, a.events, a.media) for a in local]
    tokens = [[row[name] for name in ("prompt_tokens", "finish_reason")] for row in (*rows(), *rows("local"))]
    assert tokens[:3] == tokens[3:]


def test_batch_into_a_folder_of_another_run_is_an_error(folder, server, tiny_checkpoint, capsys):
    write_manifest(folder / "m.jsonl", questions(3))
    assert run(server, tiny_checkpoint) == 0
    assert run(server, tiny_checkpoint, "--constrained") == 1
    assert "constrained is True, was False" in capsys.readouterr().err
    assert run(server, tiny_checkpoint, "--num-shards", "2") == 1
    assert "shards is 2, was 1" in capsys.readouterr().err
    write_manifest(folder / "m.jsonl", questions(4))
    assert run(server, tiny_checkpoint) == 1
    assert "has answers to another manifest" in capsys.readouterr().err
    write_manifest(folder / "m.jsonl", questions(3))
    (folder / "out/answers/00000-of-00001.parquet").write_bytes(b"PAR1 damaged")
    assert run(server, tiny_checkpoint) == 1
    assert "is damaged or was not written by" in capsys.readouterr().err


def test_checkpoint_with_other_weights_of_the_same_size_is_another_run(tiny_checkpoint, tmp_path):
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert checkpoint_hash(str(copy)) == checkpoint_hash(tiny_checkpoint)
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert checkpoint_hash(str(copy)) != checkpoint_hash(tiny_checkpoint)


def test_read_answers_of_a_run_that_has_not_ended_is_an_error(tmp_path):
    shards = [Shard(i, 2, 1 + i, pyarrow.table({"n": [i]}), [{"text": f"{i}"}]) for i in range(2)]
    answer_shards(shards[1:], Store(Folder(str(tmp_path)), "run", "1"), Recorder(0))
    with pytest.raises(FileNotFoundError, match="has 1 of 00002 files"):
        next(read_answers(str(tmp_path)))


def test_shard_that_cannot_be_saved_does_not_lose_those_after_it(tmp_path, monkeypatch):
    shards = [Shard(i, 3, 1 + 2 * i, pyarrow.table({"n": [0, 1]}), [{"text": f"{i}{n}"} for n in range(2)]) for i in range(3)]
    folder, save = Folder(str(tmp_path)), Store.save

    def fail(self, shard, *arguments):
        if shard.index == 1:
            raise OSError("No space left on device")
        return save(self, shard, *arguments)

    monkeypatch.setattr(Store, "save", fail)
    with pytest.raises(OSError, match="No space left on device"):
        answer_shards(shards, Store(folder, "run", "1"), Halves())
    assert [name[:5] for name in folder.names("partial")] == ["00000", "00002"]


class Halves:
    """Answers the first of two rows of each of three shards, after all rows have been begun. The others end the run."""

    batch_size, connections = 1, 6

    def __init__(self):
        self.all_begun = threading.Barrier(6)

    def answer(self, questions):
        self.all_begun.wait(60)
        if questions[0]["text"].endswith("1"):
            raise NoServerError("none")
        return [Outcome(Grounding(questions[0]["text"]))]


def test_question_that_the_pipeline_refuses_is_a_failed_row_of_its_own(folder):
    class Grounder:
        processor = tiny_processor()

        def __call__(self, questions, batch_size, **options):
            if any(question["context"].query == "too long" for question in questions):
                raise ValueError("The prompt is too long.")
            return [Grounding(question["context"].query).to_dict() for question in questions]

    asked = [{"image": str(folder / "b.png"), "task": "rec", "text": text} for text in ("a dog", "too long", "a cat")]
    outcomes = PipelineAnswering(Grounder(), 3, {}).answer(asked)
    assert [outcome.answer and outcome.answer.text for outcome in outcomes] == ["a dog", None, "a cat"]
    assert outcomes[1].error == "The prompt is too long."


def test_batch_ends_when_no_server_answers_and_asks_nothing_twice_afterwards(folder, answering_model, tiny_checkpoint, capsys):
    write_manifest(folder / "m.jsonl", questions(10))
    with serve_openai(*answering_model) as first:
        served = first.next_fault
        first.next_fault = lambda *request: served(*request) if len(first.requests) < 6 else "close"
        # The server lists its model, so the rows get their attempts: the connection is closed for all of them.
        assert run(first, tiny_checkpoint, "--max-retries", "0", "--connections", "1") == 3
    lost = [row["error_type"] for row in rows() if row["status"] == "failed"]
    assert lost == ["ConnectionError"] * 4
    url = first.url
    assert run(first, tiny_checkpoint, "--retry-failed") == 1
    assert f"No server answers: {url}" in capsys.readouterr().err
    with serve_openai(*answering_model) as second:
        assert run(second, tiny_checkpoint, "--retry-failed") == 0
    assert sorted(asked(first) + asked(second)) == sorted(f"Question {n}?" for n in range(10))


BODY = {"model": "llava-st", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 2}


def test_servers_of_which_one_dies_lose_no_row(answering_model):
    body = BODY
    with serve_openai(*answering_model) as kept:
        with serve_openai(*answering_model) as dying:
            servers = Servers([dying.url, kept.url.removesuffix("/v1")], wait_s=0.2)
            dying.faults = ["close"]
            reply = servers.ask(body)
            assert (reply.server, reply.requests, len(dying.requests), len(kept.requests)) == (kept.url, 2, 1, 1)
        for _ in range(3):
            assert servers.ask(body).server == kept.url
        assert servers.down == [dying.url]
        kept.next_fault = lambda *request: "close"  # connections that are open are still answered
    with pytest.raises(NoServerError, match=r"No server has answered for 0\.2 seconds"):
        servers.ask(body)


def test_server_that_is_started_again_gets_requests_again(answering_model, monkeypatch):
    monkeypatch.setattr(servers, "_PROBE_S", 0.05)
    with serve_openai(*answering_model) as kept:
        with serve_openai(*answering_model) as dying:
            asked = Servers([dying.url, kept.url])
        dying.faults = ["close"]  # its connection is still open
        assert [asked.ask(BODY).server for _ in range(2)] == [kept.url] * 2 and asked.down == [dying.url]
        with serve_openai(*answering_model, port=urlsplit(dying.url).port):
            deadline = time.monotonic() + 10
            while (reply := asked.ask(BODY)).server == kept.url and time.monotonic() < deadline:
                time.sleep(0.05)
            assert reply.server == dying.url and not asked.down


def test_requests_wait_for_a_proxy_whose_server_is_down(answering_model, monkeypatch):
    monkeypatch.setattr(servers, "_PROBE_S", 0.05)
    with serve_openai(*answering_model) as server:
        asked = Servers([server.url], max_retries=1)
        server.is_ready = False
        timer = threading.Timer(1.5, setattr, (server, "is_ready", True))
        timer.start()
        assert asked.ask(BODY).requests == 2
        timer.join()


def test_answers_that_are_none_are_failed_rows_and_lose_no_others(folder, server, tiny_checkpoint):
    def body(content, usage):
        return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": usage}

    write_manifest(folder / "m.jsonl", questions(6))
    server.faults = [None, body("An answer", {"completion_tokens": 2**70, "prompt_tokens": "many"}), body("half \ud800", {})]
    server.faults += [{"choices": []}, {"choices": "none", "usage": 7}, (413, {})]
    assert run(server, tiny_checkpoint, "--connections", "1") == 3
    found = rows()
    assert [row["status"] for row in found] == ["ok", "ok", "failed", "failed", "failed", "failed"]
    assert [row["error_type"] for row in found[2:]] == ["RequestError"] * 3 + ["HTTP 413"]
    assert [row["requests"] for row in found] == [1] * 6 and found[1]["completion_tokens"] is None


def test_servers_with_different_models_or_none_are_an_error(answering_model):
    with serve_openai(*answering_model) as one, serve_openai(*answering_model, name="other") as other:
        with pytest.raises(ValueError, match=r"serve different models: .*: llava-st, .*: other"):
            Servers([one.url, other.url])
        with pytest.raises(ValueError, match="serves llava-st, but other is expected"):
            Servers([one.url], model="other")
    with pytest.raises(ValueError, match="No server answers"):
        Servers([one.url])


def test_batch_ends_after_answers_of_another_checkpoint(folder, server, tiny_checkpoint, capsys):
    write_manifest(folder / "m.jsonl", questions(30))
    answer = server.answer
    server.answer = lambda body: {**answer(body), "usage": {"prompt_tokens": 1, "completion_tokens": 4}}
    assert run(server, tiny_checkpoint) == 1
    assert "None of the first 3 answers can be read" in capsys.readouterr().err and len(server.requests) < 15


def test_batch_in_object_storage_reads_manifest_and_media_there(folder, server, tiny_checkpoint):
    storage = fsspec.filesystem("memory")
    storage.pipe_file("/bucket/in/a.mp4", (folder / "a.mp4").read_bytes())
    storage.pipe_file("/bucket/in/bad.mp4", b"not a video")
    given = [*questions(3), {"id": "q3", "video": "bad.mp4", "text": "Question?"}]
    storage.pipe_file("/bucket/in/m.jsonl", "".join(json.dumps(row) + "\n" for row in given).encode())
    command = ["batch", "memory://bucket/in/m.jsonl", "memory://bucket/out", "--model", tiny_checkpoint, "--server", server.url]
    assert main([*command, "--max-new-tokens", "4"]) == 3
    assert main([*command, "--max-new-tokens", "4"]) == 3
    assert len(server.requests) == 3
    assert [row["status"] for row in rows("memory://bucket/out")] == ["ok", "ok", "ok", "failed"]
    assert rows("memory://bucket/out")[3]["error"].startswith("memory://bucket/in/bad.mp4: ")
    assert storage.exists("/bucket/out/summary.json")


def test_killed_batch_is_resumed_without_asking_finished_shards_again(folder, server, tiny_checkpoint):
    count, shard = 24, 4
    write_manifest(folder / "m.jsonl", questions(count))
    command = ["batch", "m.jsonl", "out", "--model", tiny_checkpoint, "--server", server.url, "--max-new-tokens", "4", "--num-shards", "6"]
    command += ["--connections", "2"]
    server.delay = 0.05
    process = subprocess.Popen([sys.executable, "-m", "llava_st_hf", *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while len(server.requests) < 14 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = sorted(path.name for path in (folder / "out/answers").iterdir() if not path.name.startswith("."))
    assert 2 <= len(finished) < 6 and not (folder / "out/summary.json").exists()
    kept = {name: (folder / "out/answers" / name).read_bytes() for name in finished}
    server.delay, before = 0.0, asked(server)
    server.requests.clear()
    assert main(command) == 0
    again = asked(server)
    in_finished = {f"Question {n}?" for name in finished for n in range(shard * int(name[:5]), shard * int(name[:5]) + shard)}
    assert not in_finished & set(again) and set(before) | set(again) == {f"Question {n}?" for n in range(count)}
    assert len(again) == len(set(again)) == count - len(in_finished)
    assert all((folder / "out/answers" / name).read_bytes() == content for name, content in kept.items())
    assert [(row["row"], row["status"]) for row in rows()] == [(n + 1, "ok") for n in range(count)]
