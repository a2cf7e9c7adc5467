# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import yaml
from PIL import Image

from llava_st_hf.cli import main
from llava_st_hf.data import validate_mixture
from llava_st_hf.model import video_decoding_llava_st
from modeling_tests.media import moving_frames, write_audio, write_cut, write_timed_video, write_video, write_with_broken_frame


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Writes a video of 20 frames in two seconds, an image, and files that are damaged or of another type."""
    folder = tmp_path_factory.mktemp("media")
    frames = moving_frames(20, 48, 64)
    write_video(folder / "clip.mp4", frames, fps=10)
    write_timed_video(folder / "uneven.mp4", [0, 0.1, 0.5, 0.6, 2.0])
    write_audio(folder / "sound.mp4")
    Image.fromarray(frames[0]).save(folder / "photo.jpg", quality=95)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    Image.fromarray(frames[0]).save(folder / "sideways.jpg", exif=sideways)
    (folder / "cut.mp4").write_bytes((folder / "clip.mp4").read_bytes()[:-400])
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:-300])
    (folder / "empty.mp4").touch()
    (folder / "empty.jpg").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "text.jpg").write_text("no image")
    (folder / "folder.mp4").mkdir()
    write_cut(folder / "cut.mkv")
    write_with_broken_frame(folder / "broken.mov", 45)
    for name, broken in (("frames", None), ("broken frames", 3)):
        (folder / name).mkdir()
        for number in range(5):
            path = folder / name / f"{number}.png"
            Image.fromarray(frames[number]).save(path)
            if number == broken:
                path.write_bytes(path.read_bytes()[:-100])
    return folder


def write_mixture(tmp_path, media, rows, format="jsonl") -> str:
    (tmp_path / "rows.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    entry = {"json_path": "rows.jsonl", "data_folder": str(media), "source": "made", "format": format}
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": [entry]}))
    return str(tmp_path / "mixture.yaml")


def tvg(video="clip.mp4", span=(0.5, 1.5), **more) -> dict:
    return {"task": "tvg", "text": "a dog runs", "video": video, "span": list(span), **more}


def chat(video: str, question: str = "When?", answer: str = "At <t0.5>.", **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], "video": video, **more}


def rec(image="photo.jpg", box=(1, 2, 30, 40)) -> dict:
    return {"task": "rec", "text": "a dog", "image": image, "box": list(box)}


GOOD = [
    tvg(),
    tvg(span=(0, 2.0)),
    tvg(clip=[5, 19], span=(0.5, 1.5)),
    tvg(clip=[5, 20], span=(0.5, 1.5)),  # one frame after the last, which the video processor accepts
    tvg(start=0.5, end=1.5),
    tvg("uneven.mp4", span=(0.2, 1.9)),
    tvg("uneven.mp4", clip=[1, 3], span=(0.1, 0.55)),
    rec(),
    rec(box=(0, 0, 64, 48)),
    rec("sideways.jpg", box=(0, 0, 48, 64)),  # after EXIF rotation
    chat("frames"),
    chat("frames", clip=[1, 4]),
    tvg("broken.mov", clip=[2, 10], span=(0.3, 0.9)),
    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]},
]
BAD = [
    (tvg("nowhere.mp4"), "nowhere.mp4 does not exist"),
    (tvg("empty.mp4"), "empty.mp4 is empty"),
    (tvg("cut.mp4"), "cut short"),
    (tvg("cut.mkv"), "cut short"),
    (tvg("broken.mov"), "broken.mov cannot be decoded"),
    (chat("broken frames"), "3.png is a damaged image"),
    (chat("frames", clip=[2, 9]), "lie beyond the video, which has 5 frames"),
    (tvg("frames"), "the frame rate of the video is unknown"),
    (tvg("text.mp4"), "cannot be read as a video"),
    (tvg("sound.mp4"), "sound.mp4"),
    (tvg("folder.mp4"), "is a folder without frames"),
    (tvg(clip=[5, 25]), "lie beyond the video, which has 20 frames"),
    (tvg(clip=[30, 40]), "lie beyond the video"),
    (tvg(start=1, end=5), "lies beyond the end"),
    (tvg(span=(0.5, 9)), "<t9.0s> is outside the clip"),
    (tvg(clip=[10, 19], span=(0.2, 1.5)), "<t0.2s> is outside the clip, which lasts from 1 to 2 seconds"),
    (tvg("uneven.mp4", clip=[1, 2], span=(0.1, 1.5)), "<t1.5s> is outside the clip"),
    (rec("nowhere.jpg"), "nowhere.jpg does not exist"),
    (rec("empty.jpg"), "empty.jpg is empty"),
    (rec("cut.jpg"), "damaged image"),
    (rec("text.jpg"), "not an image that can be read"),
    (rec(box=(1, 2, 70, 40)), "<w70.0px> is outside the image, whose width is 64 pixels"),
    (rec("sideways.jpg", box=(0, 0, 64, 40)), "whose width is 48 pixels"),
    (rec("../photo.jpg"), "has a '..'"),
    ("{", "not valid JSON"),
    (tvg(span=(2, 1)), "ends before it starts"),
]


UNREADABLE = BAD[-3:]


def test_validate_mixture_valid_rows_gives_no_problems(tmp_path, media):
    assert validate_mixture(write_mixture(tmp_path, media, GOOD)) == []


@pytest.mark.parametrize("row, reason", BAD, ids=[reason for _, reason in BAD])
def test_validate_mixture_invalid_row_gives_file_row_id_and_reason(tmp_path, media, row, reason):
    (problem,) = validate_mixture(write_mixture(tmp_path, media, [GOOD[0], row, GOOD[0]]))
    assert problem.file == str(tmp_path / "rows.jsonl") and problem.row == 2
    assert reason in problem.reason
    assert problem.id == (None if (row, reason) in UNREADABLE else "2")


def test_validate_mixture_reports_all_problems_or_at_most_max_problems(tmp_path, media):
    path = write_mixture(tmp_path, media, [row for row, _ in BAD])
    assert [problem.row for problem in validate_mixture(path)] == list(range(1, len(BAD) + 1))
    assert len(validate_mixture(path, max_problems=3)) == 3
    with pytest.raises(ValueError, match="max_problems"):
        validate_mixture(path, max_problems=0)


def test_validate_mixture_without_check_media_reports_only_annotation_problems(tmp_path, media):
    problems = validate_mixture(write_mixture(tmp_path, media, [row for row, _ in BAD]), check_media=False)
    assert [problem.row for problem in problems] == [len(BAD) - 2, len(BAD) - 1, len(BAD)]


def test_validate_mixture_repaired_file_is_checked_again(tmp_path, media):
    path = write_mixture(tmp_path, tmp_path, [rec()])
    assert len(validate_mixture(path)) == 1
    (tmp_path / "photo.jpg").write_bytes((media / "photo.jpg").read_bytes())
    assert validate_mixture(path) == []


def test_validate_mixture_st_align_split_beyond_the_video_is_a_problem(tmp_path, media):
    talk = [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": "At <TEMP-OUTPUT>."}]
    row = {"id": "a", "video": "clip.mp4", "conversations": talk, "variables": {"temporal_output_locations": [0.5]}}
    path = write_mixture(tmp_path, media, [row, {**row, "id": "b", "meta": {"split": [0, 30]}}], format="st_align")
    (problem,) = validate_mixture(path)
    assert (problem.row, problem.id) == (2, "b") and "beyond the video" in problem.reason
    assert str(problem).endswith(f"rows.jsonl, row 2 (id b): {problem.reason}")


def test_validate_mixture_invalid_mixture_or_annotation_file_is_a_problem(tmp_path):
    (tmp_path / "cut.json").write_text('[{"conversations": []}, {')
    (tmp_path / "none.json").write_text("[]")
    entries = [{"json_path": "nowhere.json"}, {"json_path": "cut.json"}, {"json_path": "none.json"}]
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    missing, row, cut, none = validate_mixture(tmp_path / "m.yaml")
    assert missing.file.endswith("m.yaml") and missing.row == 1 and "nowhere.json does not exist" in missing.reason
    assert (row.row, cut.row) == (1, 2) and "not valid JSON from there on" in cut.reason
    assert none.reason == "The file has no rows."
    (problem,) = validate_mixture(tmp_path / "not.yaml")
    assert problem.row == 0 and "not.yaml" in problem.reason


def test_cli_check_data_with_problems_prints_them_and_exits_with_1(tmp_path, media, capsys):
    path = write_mixture(tmp_path, media, [*GOOD, BAD[0][0], "{"])
    assert main(["check-data", path]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    first = len(GOOD) + 1
    assert f"row {first} (id {first}): " in lines[0] and "nowhere.mp4" in lines[0] and f"row {first + 1}: " in lines[1]
    assert lines[2] == f"made: {len(GOOD)} usable rows, 2 problems" and "has 2 problems" in captured.err
    assert main(["check-data", path, "--no-media"]) == 1
    captured = capsys.readouterr()
    assert f"{len(GOOD) + 1} usable rows, 1 problem\n" in captured.out and "has 1 problem.\n" in captured.err


def test_cli_check_data_without_problems_exits_with_0(tmp_path, media, capsys):
    assert main(["check-data", write_mixture(tmp_path, media, GOOD)]) == 0
    assert capsys.readouterr().out == f"made: {len(GOOD)} usable rows, 0 problems\n"


def test_validate_mixture_decodes_sampled_frames_or_all_frames_with_decode(tmp_path, media):
    path = write_mixture(tmp_path, media, [tvg("broken.mov")])  # frame 45 of 60 is broken
    assert validate_mixture(path, num_frames=2) == []  # the first and the last
    assert len(validate_mixture(path, num_frames=60)) == len(validate_mixture(path)) == 1
    path = write_mixture(tmp_path, media, [tvg("broken.mov", clip=[0, 10], span=(0.1, 0.9))] * 2 + [tvg()])
    assert validate_mixture(path) == []
    assert [problem.row for problem in validate_mixture(path, decode=True)] == [1, 2]


def test_validate_mixture_truncated_file_with_allow_truncated_is_checked_up_to_its_last_frame(tmp_path, media):
    rows = [tvg("cut.mkv", span=(0.1, 0.9)), tvg("cut.mkv", span=(0.1, 1.9)), tvg("cut.mp4")]
    path = write_mixture(tmp_path, media, rows)
    assert [problem.row for problem in validate_mixture(path)] == [1, 2, 3]
    assert "allow_truncated" in validate_mixture(path)[0].reason
    beyond, _ = validate_mixture(path, allow_truncated=True)  # the index of cut.mp4 is at its end, so the file cannot be opened
    assert beyond.row == 2 and "<t1.9s> is outside the clip" in beyond.reason


@pytest.mark.parametrize("decode, expected", [(False, ["clip.mp4", "clip.mp4", "uneven.mp4"]), (True, ["clip.mp4", "uneven.mp4"])])
def test_validate_mixture_opens_each_clip_once_for_all_its_rows(tmp_path, media, monkeypatch, decode, expected):
    opened = []

    def counting(path, *rest):
        opened.append(path.rpartition("/")[2])
        return open_video_file(path, *rest)

    open_video_file = video_decoding_llava_st.open_video_file
    monkeypatch.setattr(video_decoding_llava_st, "open_video_file", counting)
    part = {"clip": [5, 19], "span": (0.5, 1.5)}
    rows = [tvg(), tvg(**part), tvg("uneven.mp4"), tvg(text="another"), tvg(**part), tvg("uneven.mp4")]
    assert validate_mixture(write_mixture(tmp_path, media, rows), decode=decode) == []
    assert opened == expected


@pytest.mark.parametrize("option, message", [({"num_frames": 0}, "num_frames"), ({"video_backend": "opencv"}, "video_backend .*'opencv'")])
def test_validate_mixture_invalid_option_raises(tmp_path, media, option, message):
    with pytest.raises(ValueError, match=message):
        validate_mixture(write_mixture(tmp_path, media, GOOD), **option)


def test_cli_check_data_options_for_decoding_are_applied(tmp_path, media, capsys):
    rows = [tvg("broken.mov"), tvg("broken.mov", clip=[0, 10], span=(0.1, 0.9)), tvg("cut.mkv", span=(0.1, 0.9)), tvg()]
    path = write_mixture(tmp_path, media, rows)

    def problem_rows(*options) -> list[int]:
        assert main(["check-data", path, *options]) == 1
        lines = capsys.readouterr().out.splitlines()
        return [int(line.partition(", row ")[2].split()[0]) for line in lines if ", row " in line]

    assert problem_rows() == [1, 3]
    assert problem_rows("--num-frames", "2") == [3]
    assert problem_rows("--decode", "--allow-truncated") == [1, 2]
    assert problem_rows("--video-backend", "decord") == [1, 3]
    assert main(["check-data", path, "--video-backend", "opencv"]) == 1
    assert "video_backend must be one of 'pyav', 'decord'" in capsys.readouterr().err
