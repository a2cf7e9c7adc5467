# SPDX-License-Identifier: Apache-2.0
import json
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.data.hc_stvg import read_hc_stvg
from llava_st_hf.data.json_rows import MAX_DEPTH, BrokenFileError, _DepthGuard, read_rows
from llava_st_hf.data.paths import join_path


def rows_of(tmp_path, name: str, content: bytes) -> list:
    path = tmp_path / name
    path.write_bytes(content)
    return list(read_rows(str(path)))


def test_read_rows_json_list_and_json_lines_give_equal_rows(tmp_path):
    objects = [{"a": 1, "b": [0.1, 1e-9], "c": "ü"}, {"a": -2.5}]
    expected = [(1, objects[0]), (2, objects[1])]
    assert rows_of(tmp_path, "a.json", json.dumps(objects).encode()) == expected
    assert rows_of(tmp_path, "a.jsonl", "\n".join(map(json.dumps, objects)).encode()) == expected
    assert rows_of(tmp_path, "b.json", b"\xef\xbb\xbf \n" + json.dumps(objects).encode()) == expected
    assert rows_of(tmp_path, "b.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(o).encode() for o in objects)) == expected


def test_read_rows_json_numbers_are_float_or_int(tmp_path):
    ((_, row),) = rows_of(tmp_path, "a.json", b'[{"a": 0.1, "b": 3}]')
    assert type(row["a"]) is float and type(row["b"]) is int and row["a"] == 0.1


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "beyond the range of a float"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "nested deeper than 100"),
        (b"[1]", "The row must be an object"),
        (b'"text"', "The row must be an object"),
    ],
)
def test_read_rows_invalid_line_gives_an_error_for_its_row_only(tmp_path, line, reason):
    good = b'{"b": 2}\n'
    first, (number, problem), last = rows_of(tmp_path, "a.jsonl", good + line + b"\n\n" + good)
    assert first == (1, {"b": 2}) and last == (4, {"b": 2})
    assert number == 2 and isinstance(problem, str) and reason in problem


@pytest.mark.parametrize("tail", [b"", b', {"a": NaN}]', b', {"a": 1e999}]', b", oops]", b', {"a": "\xff"}]', b"] more"])
def test_read_rows_invalid_json_list_raises_with_file_and_row(tmp_path, tail):
    path = tmp_path / "cut.json"
    path.write_bytes(b'[{"a": 1}, 7, {"a": 3}' + tail)
    rows = read_rows(str(path))
    assert next(rows) == (1, {"a": 1})
    number, problem = next(rows)
    assert number == 2 and "The row must be an object, not 7" in problem
    assert next(rows) == (3, {"a": 3})
    with pytest.raises(BrokenFileError, match=r"cut\.json, row 4"):
        next(rows)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_read_rows_accepts_the_maximum_depth_and_names_a_deeper_row(tmp_path, suffix):
    as_list, separator, ends = suffix == "json", {"json": b",", "jsonl": b"\n"}[suffix], {"json": (b"[", b"]"), "jsonl": (b"", b"")}[suffix]
    deepest = MAX_DEPTH - 1 - as_list  # in addition to the object and the list of rows
    rows = [b'{"a": ' + nested(depth) + b', "b": "[[[{"}' for depth in (1, deepest, deepest + 1, 1)]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(ends[0] + separator.join(rows) + ends[1])
    found = read_rows(str(path))
    assert [next(found)[0] for _ in range(2)] == [1, 2]
    if as_list:
        with pytest.raises(BrokenFileError, match=r"a\.json, row 3: .*deeper than 100 objects and lists"):
            next(found)
    else:
        (number, problem), (_, last) = found
        assert number == 3 and "deeper than 100 objects and lists" in problem and isinstance(last, dict)


@pytest.mark.parametrize("read", [read_rows, read_hc_stvg])
@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
def test_read_rows_deeply_nested_file_raises_within_32_mib(tmp_path, read, bracket):
    path = tmp_path / "a.json"
    path.write_bytes((b"[" if read is read_rows else b'{"a":') + bracket * 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(BrokenFileError, match=r"a\.json, row 1: .*deeper than"):
            list(read(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


JSON_TEXTS = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab[]{}"\\', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a[]{}"\\', max_size=3), inner, max_size=2),
    max_leaves=20,
).map(json.dumps)


def depth_of(value) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)


@given(text=JSON_TEXTS, size=st.integers(1, 7))
def test_depth_guard_any_chunk_size_finds_the_greatest_depth(text, size):
    guard, greatest = _DepthGuard(), 0
    content = text.encode()
    for start in range(0, len(content), size):
        for length in range(1, size + 1):  # the depth after each byte, from a copy of the state before the chunk
            copy = _DepthGuard()
            copy.__dict__.update(guard.__dict__)
            copy.first_too_deep(content[start : start + length])
            greatest = max(greatest, copy.depth)
        guard.first_too_deep(content[start : start + size])
    assert guard.depth == 0 and not guard.in_string
    assert greatest == depth_of(json.loads(text))


@pytest.mark.parametrize("content, reason", [(b"", "is empty"), (b'{"a": [1]}', "begins with '{'"), (b"  3", "begins with '3'")])
def test_read_rows_json_file_without_a_list_raises(tmp_path, content, reason):
    with pytest.raises(BrokenFileError, match=reason):
        rows_of(tmp_path, "a.json", content)


def test_read_rows_unknown_suffix_raises(tmp_path):
    with pytest.raises(BrokenFileError, match=r"a\.csv: The file must be"):
        rows_of(tmp_path, "a.csv", b"[]")


def test_read_rows_empty_file_has_no_rows(tmp_path):
    assert rows_of(tmp_path, "a.json", b"[]") == [] and rows_of(tmp_path, "a.jsonl", b"") == []


def test_join_path_relative_path_is_joined_to_the_folder():
    assert join_path("/data", "a/b c.mp4") == "/data/a/b c.mp4"
    assert join_path("data", "a..b.mp4") == os.path.join(os.getcwd(), "data", "a..b.mp4")


@pytest.mark.parametrize(
    "path",
    [
        *("/a", "\\a", "C:\\a", "c:a", "//host/a", "..", "../a", "a/../../b", "a/..", "a\\..\\b"),
        *("http://x/a", "file:///a", "data:,a", "", " ", ".", "./", "a\0b", None, 3, ["a"], b"a", "a\ud83d"),
    ],
)
def test_join_path_that_may_leave_the_folder_or_is_invalid_raises(path):
    with pytest.raises(ValueError, match="The path"):
        join_path("/data", path)


@given(st.text(alphabet="ab./\\:~ ", max_size=12))
def test_join_path_any_text_stays_within_the_folder_or_raises(path):
    try:
        joined = join_path("/data/here", path)
    except ValueError:
        return
    assert os.path.normpath(joined).startswith("/data/here/")


def test_join_path_symbolic_links_are_not_resolved(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert join_path(tmp_path / "data", "link/a.mp4") == str(tmp_path / "data" / "link" / "a.mp4")
