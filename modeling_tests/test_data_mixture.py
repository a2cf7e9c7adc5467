# SPDX-License-Identifier: Apache-2.0
import json
import logging
import math
import os
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import yaml
from datasets import Dataset, IterableDataset
from transformers.utils import logging as hf_logging

from llava_st_hf.data import FEATURES, load_mixture, read_mixture
from llava_st_hf.data.mixture import Strategy
from modeling_tests.processors import tiny_processor
from modeling_tests.test_data_annotations import ANNOTATION, IMAGE, PERSON, SENTENCES, VERSION_1, vidor


def sample(number: int) -> dict:
    return {"id": str(number), "conversations": [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": "A number."}]}


def write_rows(path, rows) -> str:
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else "[" + ",".join(map(json.dumps, rows)) + "]")
    return path.name


def mixture(tmp_path, *entries, name="mixture.yaml") -> str:
    path = tmp_path / name
    path.write_text(yaml.safe_dump({"datasets": list(entries)}))
    return str(path)


def simple(tmp_path, rows=10, strategy="all", **entry) -> str:
    name = write_rows(
        tmp_path / "rows.jsonl", [sample(i) if isinstance(i, int) else i for i in (range(rows) if isinstance(rows, int) else rows)]
    )
    return mixture(tmp_path, {"json_path": name, "source": "made", "sampling_strategy": strategy, **entry})


def ids(dataset) -> list[int]:
    return [int(row["id"]) for row in dataset]


@pytest.fixture
def load(tmp_path):
    def load(path, **options):
        return load_mixture(path, cache_dir=str(tmp_path / "cache"), **options)

    return load


def test_load_mixture_rows_have_the_fixed_columns_with_none_for_missing_keys(tmp_path, load):
    dataset = load(simple(tmp_path))
    assert isinstance(dataset, Dataset) and dataset.features == FEATURES and len(dataset) == 10
    assert dataset[3]["messages"][0] == {
        "role": "user",
        "content": [{"type": "text", "text": "What is 3?", "path": None, "image": None, "clip": None, "start": None, "end": None}],
    }
    assert dataset[3]["images"] == []
    assert dataset[3]["length"] == 2 + 2 and dataset[3]["source"] == "made" and dataset[3]["task"] == "conversation"


@pytest.mark.parametrize(
    "strategy, expected",
    [
        ("all", list(range(10))),
        ("first:3", [0, 1, 2]),
        ("end:3", [7, 8, 9]),
        ("first:25%", [0, 1, 2]),
        ("end:0.1%", [9]),
        ("first:100%", list(range(10))),
        ("end:20", list(range(10))),
    ],
)
def test_load_mixture_sampling_strategy_selects_rows_of_the_file(tmp_path, load, strategy, expected):
    assert ids(load(simple(tmp_path, strategy=strategy))) == expected


def test_load_mixture_random_strategy_is_seeded_and_keeps_the_order(tmp_path, load):
    path = simple(tmp_path, rows=100, strategy="random:20")
    first, again, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    assert ids(first) == ids(again) == sorted(set(ids(first))) and len(first) == 20
    assert ids(first) != ids(other)


@pytest.mark.parametrize("total", [1, 7, 99, 1000])
@pytest.mark.parametrize("percent", ["10", "33.3", "0.01", "100"])
def test_strategy_count_of_a_percentage_is_rounded_up(total, percent):
    from fractions import Fraction

    count = Strategy("first", Fraction(percent), percent=True).count(total)
    assert count == math.ceil(Fraction(percent) * total / 100) and 1 <= count <= total


def test_load_mixture_concatenates_entries_with_paths_relative_to_its_folder(tmp_path, load, monkeypatch):
    (tmp_path / "sub").mkdir()
    write_rows(tmp_path / "sub" / "a.json", [{**sample(1), "video": "x.mp4"}])
    write_rows(tmp_path / "b.jsonl", [sample(2)])
    path = mixture(tmp_path, {"json_path": "sub/a.json", "data_folder": "sub"}, {"json_path": str(tmp_path / "b.jsonl"), "task": "talk"})
    monkeypatch.chdir(tmp_path)
    dataset = load(os.path.basename(path))
    assert dataset["source"][:] == ["a", "b"] and dataset["task"][:] == ["conversation", "talk"]
    assert dataset[0]["messages"][0]["content"][0]["path"] == str(tmp_path / "sub" / "x.mp4")


@pytest.mark.parametrize(
    "entry, reason",
    [
        ({"json_path": "nowhere.json"}, "nowhere.json does not exist"),
        ({"json_path": None}, "'json_path' must be"),
        ({"sampling_strategy": "some"}, "'sampling_strategy' must be all, first:N"),
        ({"sampling_strategy": "first:0"}, "sampling_strategy"),
        ({"sampling_strategy": "first:1.5"}, "sampling_strategy"),
        ({"sampling_strategy": "first:101%"}, "sampling_strategy"),
        ({"sampling_strategy": "random:-3"}, "sampling_strategy"),
        ({"sampling_strategy": 5}, "or a share like 10%, not 5."),
        ({"format": "coco"}, "not 'coco'"),
        ({"format": ["st_align"]}, "'format' must be one of st_align"),
        ({"format": "vidstg", "data_folder": "."}, "'boxes_folder' is missing"),
        ({"format": "vidstg", "data_folder": ".", "boxes_folder": "nowhere"}, "nowhere does not exist"),
        ({"format": "refcoco"}, "'data_folder' is missing"),
        ({"format": "refcoco", "data_folder": ".", "task": "tvg"}, "'task' must be one of rec, reg"),
        ({"format": "jsonl", "task": "tvg"}, "whose rows have their own task"),
        ({"boxes_folder": "."}, "'boxes_folder' is not a valid key for the format 'st_align'"),
        ({"shuffle": True}, "'shuffle' is not a valid key; the keys are json_path, "),
        ({"source": 3}, "'source' must be a string"),
    ],
)
def test_read_mixture_invalid_entry_is_an_error_that_names_it(tmp_path, entry, reason):
    write_rows(tmp_path / "rows.jsonl", [sample(1)])
    path = mixture(tmp_path, {"json_path": "rows.jsonl"}, {"json_path": "rows.jsonl", **entry})
    with pytest.raises(ValueError, match=r"mixture\.yaml, entry 2: ") as error:
        read_mixture(path)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "content", ["", "datasets: 3", "datasets: []", "- a", "datasets: [", "datasets: []\nmore: 1", "!!python/name:os.system {}"]
)
def test_read_mixture_invalid_file_raises(tmp_path, content):
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"m\.yaml: "):
        read_mixture(tmp_path / "m.yaml")


BROKEN = [sample(0), "{oops", sample(2), {"conversations": []}, sample(4)]


@pytest.mark.parametrize("streaming", [False, True])
def test_load_mixture_invalid_row_raises_with_file_row_and_reason(tmp_path, load, streaming):
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 2: The line is not valid JSON"):
        list(load(simple(tmp_path, BROKEN), streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_load_mixture_on_error_skip_skips_up_to_max_errors_rows(tmp_path, load, streaming, caplog):
    path = simple(tmp_path, BROKEN)
    hf_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            assert ids(load(path, streaming=streaming, on_error="skip", max_errors=2)) == [0, 2, 4]
    finally:
        hf_logging.disable_propagation()
    warnings = [record.getMessage() for record in caplog.records if "Skipped" in record.getMessage()]
    assert len(warnings) == 2 and "Skipped 2 of at most 2" in warnings[1] and "row 4" in warnings[1]
    with pytest.raises(ValueError, match=r"More than max_errors=1 .*row 4"):
        list(load(path, streaming=streaming, on_error="skip", max_errors=1))


def test_load_mixture_strategy_counts_invalid_rows_and_ignores_those_not_selected(tmp_path, load):
    assert ids(load(simple(tmp_path, BROKEN, strategy="first:1"))) == [0]
    assert ids(load(simple(tmp_path, BROKEN, strategy="end:1"))) == [4]
    assert ids(load(simple(tmp_path, BROKEN, strategy="end:3"), on_error="skip")) == [2, 4]
    assert ids(load(simple(tmp_path, BROKEN, strategy="first:50%"), on_error="skip")) == [0, 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_load_mixture_truncated_json_list_raises_even_with_on_error_skip(tmp_path, load, streaming):
    (tmp_path / "rows.json").write_text(json.dumps([sample(0), sample(1)])[:-9])
    path = mixture(tmp_path, {"json_path": "rows.json"})
    with pytest.raises(ValueError, match=r"rows\.json, row 2: The file is not valid JSON"):
        list(load(path, streaming=streaming, on_error="skip"))


@pytest.mark.parametrize("streaming", [False, True])
def test_load_mixture_file_without_rows_raises(tmp_path, load, streaming):
    with pytest.raises(ValueError, match=r"rows\.jsonl has no rows"):
        list(load(simple(tmp_path, []), streaming=streaming))


def test_load_mixture_with_all_rows_skipped_raises(tmp_path, load):
    with pytest.raises(ValueError, match="no usable rows: 1 were skipped"):
        load(simple(tmp_path, ["{oops"]), on_error="skip")


def test_load_mixture_streaming_gives_equal_rows(tmp_path, load):
    path = simple(tmp_path, strategy="first:4")
    streamed = load(path, streaming=True)
    assert isinstance(streamed, IterableDataset) and streamed.features == FEATURES
    assert list(streamed) == list(load(path)) and list(streamed) == list(streamed)


@pytest.mark.parametrize("strategy", ["random:2", "end:2", "first:20%"])
def test_load_mixture_streaming_with_a_strategy_that_needs_the_row_count_raises(tmp_path, load, strategy):
    with pytest.raises(ValueError, match="streaming supports"):
        load(simple(tmp_path, strategy=strategy), streaming=True)


def test_load_mixture_changed_file_is_read_again(tmp_path, load):
    path = simple(tmp_path, rows=[1, 2])
    assert ids(load(path)) == [1, 2]
    status = (tmp_path / "rows.jsonl").stat()
    simple(tmp_path, rows=[3, 4])  # file of the same size
    os.utime(tmp_path / "rows.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert ids(load(path)) == [3, 4]


def test_load_mixture_unchanged_file_is_cached_for_all_strategies(tmp_path, load, monkeypatch):
    assert ids(load(simple(tmp_path))) == list(range(10))

    def read_again(entry, num_frames):
        raise AssertionError("the file was read again")

    monkeypatch.setattr("llava_st_hf.data.loading.read_entry", read_again)
    name = mixture(tmp_path, {"json_path": "rows.jsonl", "source": "made", "sampling_strategy": "end:2"}, name="other.yaml")
    assert ids(load(name)) == [8, 9]


def test_load_mixture_other_package_version_reads_files_again(tmp_path, load, monkeypatch):
    path = simple(tmp_path)
    load(path)
    monkeypatch.setattr("llava_st_hf.data.loading.__version__", "999")
    monkeypatch.setattr("llava_st_hf.data.loading.read_entry", lambda entry, num_frames: iter([(1, "read again")]))
    with pytest.raises(ValueError, match="read again"):
        load(path)


def _count(arguments) -> int:
    path, cache_dir = arguments
    return len(load_mixture(path, cache_dir=cache_dir))


def test_load_mixture_concurrent_processes_load_all_rows(tmp_path):
    path = simple(tmp_path, rows=300)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_count, [(path, str(tmp_path / "cache"))] * 2)) == [300, 300]


FAMILIES = {
    "refcoco": ("rec", "[<w10.5px><h4.0px><w30.5px><h34.25px>]"),
    "charades_sta": ("tvg", "{<t0.25><t0.5>}"),
    "hc_stvg": (
        "stvg",
        "During {<t0.2><t0.3>}. Object bounding box: <t0.2>:[<w10.0px><h4.0px><w30.0px><h34.0px>]"
        "<t0.3>:[<w11.0px><h4.0px><w31.0px><h48.0px>].",
    ),
    "jsonl": ("tr", "a dog runs"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_load_mixture_each_format_gives_prompts_and_answers(tmp_path, load, family):
    contents = {
        "refcoco": {"images": [IMAGE], "annotations": [ANNOTATION]},
        "charades_sta": [{"image_id": "a", "caption": "a person sits", "timestamp": [0.25, 0.5]}],
        "hc_stvg": {"a.mp4": VERSION_1},
        "jsonl": [{"task": "tr", "video": "a.mp4", "text": "a dog runs", "span": [1, 2]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(contents[family]))
    (row,) = load(mixture(tmp_path, {"json_path": "a.json", "format": family, "data_folder": "media"}), num_frames=100)
    task, answer = FAMILIES[family]
    assert row["task"] == task and row["messages"][1]["content"][0]["text"] == answer
    medium = row["messages"][0]["content"][0]
    assert medium["type"] == row["modality"] and medium["path"] == str(tmp_path / "media" / ("a.jpg" if family == "refcoco" else "a.mp4"))


def test_load_mixture_vidstg_strategy_counts_file_rows_and_elc_excludes_questions(tmp_path, load):
    vidor(tmp_path)
    (tmp_path / "v.json").write_text(json.dumps([SENTENCES, {**SENTENCES, "vid": "9"}, SENTENCES]))
    entry = {"json_path": "v.json", "format": "vidstg", "data_folder": "videos", "boxes_folder": "boxes"}
    dataset = load(mixture(tmp_path, {**entry, "sampling_strategy": "end:2"}), on_error="skip", num_frames=100)
    assert dataset["id"][:] == ["8-3-1", "8-3-2"] and dataset[0]["messages"][0]["content"][0]["clip"] == [1, 11]
    dataset = load(mixture(tmp_path, {**entry, "task": "elc"}), on_error="skip", num_frames=100)
    assert dataset["id"][:] == ["8-1-1", "8-3-1"]
    assert dataset[0]["messages"][1]["content"][0]["text"].startswith("Ends in <t0.5>, a dog runs. Object bounding box: <t0.2>:[<w3.0px>")


DENSE = {**PERSON, "bbox": [[10, 4, 20, 30]] * 200, "st_frame": 51, "img_num": 600, "caption": "The man turns.", "width": 64, "height": 48}


def dense_mixture(tmp_path, task: str = "stvg") -> str:
    (tmp_path / "dense.json").write_text(json.dumps({"a.mp4": DENSE}))
    return mixture(tmp_path, {"json_path": "dense.json", "format": "hc_stvg", "data_folder": "media", "task": task})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("task", ["stvg", "svg", "elc"])
def test_load_mixture_dense_annotation_answers_at_each_sampled_frame(tmp_path, load, task, streaming):
    for num_frames in (20, 32, 100, 20):  # the last comes from the cache
        (row,) = load(dense_mixture(tmp_path, task), num_frames=num_frames, streaming=streaming)
        answer = row["messages"][1]["content"][0]["text"]
        sampled = [round(i / (num_frames - 1) * 599) for i in range(num_frames)]
        times = [float(time) for time in re.findall(r"<t([\d.]+)>:\[", answer)]
        assert times == [frame / 599 for frame in sampled if 50 <= frame <= 249]


@pytest.mark.parametrize("streaming", [False, True])
def test_load_mixture_dense_annotation_without_num_frames_is_an_error(tmp_path, load, streaming):
    with pytest.raises(ValueError, match=r"num_frames is missing: .*dense\.json .*'hc_stvg'.*processor\.video_processor\.num_frames"):
        load(dense_mixture(tmp_path), streaming=streaming)
    with pytest.raises(ValueError, match="num_frames must be a whole number"):
        load(dense_mixture(tmp_path), num_frames=0.5, streaming=streaming)


def test_load_mixture_answers_without_boxes_need_no_num_frames(tmp_path, load):
    (row,) = load(dense_mixture(tmp_path, "tvg"))
    assert row["messages"][1]["content"][0]["text"] == f"{{<t{50 / 599!r}><t{249 / 599!r}>}}"
    assert ids(load(simple(tmp_path), num_frames=20)) == list(range(10))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "datasets: [&a [x, x], &b [*a, *a], &c [*b, *b], {json_path: &d [*c, *c], source: [*d, *d]}]"]
)
def test_read_mixture_nested_yaml_is_a_short_error(tmp_path, content):
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"m\.yaml") as error:
        read_mixture(tmp_path / "m.yaml")
    assert len(str(error.value)) < 1000


def test_processor_accepts_the_messages_of_load_mixture(tmp_path, load):
    rows = [{"task": "tvg", "text": "a dog runs", "span": [0.5, 1], "video": "clip.mp4"}]
    from modeling_tests.corpora import write_media

    write_media(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (row,) = load(mixture(tmp_path, {"json_path": "a.json", "format": "jsonl", "data_folder": "."}))
    inputs = tiny_processor().apply_chat_template(row["messages"], tokenize=True, return_dict=True, return_tensors="pt")
    found = inputs["coordinate_values"][~inputs["coordinate_values"].isnan()]
    assert found.tolist() == pytest.approx([5 / 19, 10 / 19])  # a video of 20 frames at 10 frames per second
