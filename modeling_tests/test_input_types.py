# SPDX-License-Identifier: Apache-2.0
"""Types of media and inputs, through the chat template and the pipeline: each gives the result of a plain file or array."""

import base64
import io
import json
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image

from llava_st_hf.data import load_mixture
from llava_st_hf.model import video_frames_llava_st
from llava_st_hf.model.media_kind_llava_st import is_still_image, media_kind
from llava_st_hf.model.video_frames_llava_st import flatten_videos, folder_frames
from modeling_tests.corpora import mixed_dataset, write_media
from modeling_tests.media import moving_frames, write_animation, write_video
from modeling_tests.processors import encode, film, photo, user


FRAMES = moving_frames(12, 48, 64)


@pytest.fixture(scope="module")
def processor(grounder):
    return grounder.processor


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Writes a video of 20 frames of 64x48 at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp("media") / "video.mp4", moving_frames(20, 48, 64), fps=10)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("media") / "picture.png"
    Image.fromarray(FRAMES[0]).save(path)
    return path


def write_frames(folder: Path, count: int = 12, suffix: str = ".png") -> Path:
    folder.mkdir()
    for index, frame in enumerate(FRAMES[:count]):
        Image.fromarray(frame).save(folder / f"frame{index}{suffix}")
    return folder


def look(grounder, monkeypatch, inputs, **question):
    """Returns the tensors that the pipeline passes to the model for one input, and the answer."""
    seen = []
    template = grounder.processor.apply_chat_template

    def record(*args, **kwargs):
        seen.append(template(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(grounder.processor, "apply_chat_template", record)
    answer = grounder(inputs, text="What?", max_new_tokens=1, **question)
    monkeypatch.undo()
    assert len(seen) == 1
    return seen[0], answer


# Content in memory


def as_data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


WAYS = {
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: open(path, "rb"),  # noqa: SIM115
    "data URL": lambda path: as_data_url(path, "video/mp4" if path.suffix == ".mp4" else "image/png"),
    "data URL without a type": lambda path: as_data_url(path, ""),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("medium", ["video", "image"])
def test_content_in_memory_gives_the_pixels_of_its_file(grounder, processor, video, picture, monkeypatch, medium, way):
    path, pixels = (video, "pixel_values_videos") if medium == "video" else (picture, "pixel_values")
    source = WAYS[way](path)
    expected = encode(processor, user({"type": medium, medium: str(path)}, "What?"))
    found = encode(processor, user({"type": medium, medium: source}, "What?"))
    assert torch.equal(found[pixels], expected[pixels]) and found.media_info == expected.media_info
    for inputs in (source, {medium: source}):
        found, _ = look(grounder, monkeypatch, inputs)  # without a name, the content determines whether it is an image or a video
        assert torch.equal(found[pixels], expected[pixels]) and found.media_info == expected.media_info
    if way == "open file":
        assert source.tell() == 0
        source.close()


def test_open_file_at_its_end_is_read_completely_and_keeps_its_position(processor, video):
    expected = encode(processor, user(film(str(video)), "What?"))
    with tempfile.NamedTemporaryFile() as file:
        file.write(video.read_bytes())
        place = file.tell()
        found = encode(processor, user(film(file), "What?"))
        assert file.tell() == place
    assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"])


def test_content_of_neither_image_nor_video_raises(grounder, processor):
    for source in (b"this is text " * 50, io.BytesIO(b"this is text " * 50)):
        with pytest.raises(OSError, match="650 bytes"):
            encode(processor, user(film(source), "What?"))
        with pytest.raises(OSError, match="650 bytes"):
            grounder(source, text="What?")
    with pytest.raises(ValueError, match="open StringIO cannot be read"):
        encode(processor, user(film(io.StringIO("text")), "What?"))


def test_list_of_encoded_images_is_a_video_of_frames(processor, tmp_path):
    paths = folder_frames(str(write_frames(tmp_path / "frames", 3)))
    expected = encode(processor, user(film(paths, fps=2), "What?"))
    for frames in ([Path(path).read_bytes() for path in paths], [io.BytesIO(Path(path).read_bytes()) for path in paths]):
        found = encode(processor, user(film(frames, fps=2), "What?"))
        assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"]) and found.media_info == expected.media_info
    assert len(flatten_videos([b"no image", b"nor this"])) == 2  # two videos


def test_is_still_image_url_is_classified_by_its_suffix():
    assert is_still_image("https://host/a.png?size=3") and is_still_image("http://host/a.jpg")
    assert not any(map(is_still_image, ["http://host/a.mp4", "http://host/a.webp", "http://host/a.gif", "http://host/?name=a.png"]))


@pytest.mark.parametrize(
    "url, kind",
    [("http://host/a.webp", "image"), ("https://host/a.jpg?size=3", "image"), ("http://host/a.gif", "video"),
     ("http://host/a.apng", "video"), ("http://host/a.mp4", "video"), ("http://host/watch?v=a.png", "video")],
)  # fmt: skip
def test_media_kind_url_is_classified_by_its_suffix(url, kind):
    assert media_kind(url) == kind


def test_openai_content_items_are_accepted(processor, video, picture):
    expected = encode(processor, user(film(str(video), end=1.0), photo(str(picture)), "What?"))
    film_url = {"type": "video_url", "video_url": {"url": video.as_uri()}, "end": 1.0}
    found = encode(processor, user(film_url, {"type": "image_url", "image_url": as_data_url(picture, "")}, "What?"))
    assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"]) and found.media_info == expected.media_info
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


# Keys of video items


def test_video_items_with_sampling_keys_are_sampled_separately(processor, video):
    one, two = film(str(video), nframes=4, video_start=1.0), film(str(video), fps=2)
    counts = [encode(processor, user(item, "What?"))["pixel_values_videos"].shape[1] for item in (one, two, film(str(video)))]
    assert counts == [4, 4, 10]
    found = encode(processor, user(one, two, "What?"), processor_kwargs={"num_frames": 7})  # keys of an item override arguments
    assert found["pixel_values_videos"].shape[:2] == (2, 4)
    assert [(medium.first_frame, medium.last_frame) for medium in found.media_info[0]] == [(10, 19), (0, 19)]
    with pytest.raises(ValueError, match="equal numbers of frames, got 4 and 10"):
        encode(processor, user(one, film(str(video)), "What?"))


def test_videos_with_unequal_numbers_of_frames_raises_with_the_numbers(processor, video):
    messages = [user(film(str(video), nframes=count), "What?") for count in (8, 4)]
    for batch in (messages, [[message] for message in messages]):
        with pytest.raises(ValueError, match="videos of a batch must have equal numbers of frames, got 8 and 4"):
            encode(processor, *batch, processor_kwargs={"padding": True})


def test_sampling_or_metadata_in_item_and_argument_raises(processor, video):
    with pytest.raises(ValueError, match="`sampling` is given as an argument and by the keys of a video item"):
        encode(processor, user(film(str(video), nframes=4), "What?"), processor_kwargs={"sampling": [{"num_frames": 3}]})
    with pytest.raises(ValueError, match="`video_metadata` is given as an argument"):
        encode(processor, user(film(list(FRAMES), fps=4), "What?"), processor_kwargs={"video_metadata": [{"fps": 3}]})


@pytest.mark.parametrize(
    "sampling, message",
    [
        ([{"num_frames": 0}], "num_frames must be a whole number"),
        ([{"fps": -1}], "fps must be a finite number"),
        ([{"fps": 1, "num_frames": 2}], "an entry of `sampling` must be None"),
        ([3], "an entry of `sampling` must be None"),
        ({"fps": 1}, "`sampling` must be a list, one per video"),
        ([None, None], "got 1 videos and 2 `sampling`"),
    ],
)
def test_video_processor_invalid_sampling_raises(processor, sampling, message):
    with pytest.raises(ValueError, match=message):
        processor.video_processor(FRAMES, sampling=sampling)


# Folders of frames


def test_folder_of_frames_is_a_video_in_natural_order(grounder, processor, monkeypatch, tmp_path):
    folder = write_frames(tmp_path / "frames")
    Image.fromarray(FRAMES[10]).save(folder / "frame10.webp", lossless=True)
    (folder / "frame10.png").unlink()
    for ignored in (".DS_Store", "Thumbs.db"):
        (folder / ignored).write_bytes(b"no image")
    expected = encode(processor, user(film(FRAMES, fps=4), "What?"))
    for source in (folder, str(folder), f"{folder}/", folder.as_uri()):
        found = encode(processor, user(film(source, fps=4), "What?"))
        assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"]) and found.media_info == expected.media_info
    found, answer = look(grounder, monkeypatch, str(folder), fps=4, start=1.0)
    assert found.media_info[0][0].first_frame == 4 and answer["events"] == []
    with pytest.raises(ValueError, match="the frame rate of the video is unknown"):
        grounder(str(folder), text="What is at <t1s>?")


def test_folder_of_frames_decodes_only_sampled_frames(processor, monkeypatch, tmp_path):
    folder, opened = write_frames(tmp_path / "frames"), []
    load = video_frames_llava_st.load_image
    monkeypatch.setattr(video_frames_llava_st, "load_image", lambda path, limits: opened.append(Path(path).name) or load(path))
    processor.video_processor(str(folder), num_frames=3)
    assert opened == ["frame0.png", "frame0.png", "frame6.png", "frame11.png"]  # the first file is opened a second time for its size


def test_folder_frames_names_with_numbers_are_sorted_numerically(tmp_path):
    in_order = ["2.jpg", "2.png", "10.png", "a.png", "a1b9.png", "a1b10.png", "B.png", "f_9.jpg", "f_0010.jpg", "x1-1.png", "x1-2.png"]
    for name in sorted(in_order):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert [Path(path).name for path in folder_frames(str(tmp_path))] == in_order


def write_into(folder: Path, kind: str) -> None:
    if kind == "text":
        (folder / "labels.json").write_text("[]")
    elif kind == "folder":
        (folder / "more").mkdir()
    elif kind == "animation":
        write_animation(folder / "moving.png", FRAMES[:4], [100] * 4)
    elif kind == "size":
        Image.new("RGB", (10, 10)).save(folder / "frame12.png")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("text", "labels.json is not a still image; a folder that is read as a video"),
        ("folder", "more is not a still image"),
        ("animation", "moving.png is not a still image"),
        ("size", r"frame 0 has 48x64 pixels .*frame 12 \(.*frame12.png\) 10x10"),
    ],
)
def test_folder_of_frames_with_an_invalid_entry_raises_with_its_name(processor, tmp_path, kind, message):
    folder = write_frames(tmp_path / "frames")
    write_into(folder, kind)
    with pytest.raises((OSError, ValueError), match=message):
        encode(processor, user(film(str(folder), fps=2), "What?"), processor_kwargs={"num_frames": 13})


def test_folder_of_frames_empty_raises_with_its_name(grounder, processor, tmp_path):
    (tmp_path / ".hidden").touch()
    with pytest.raises(OSError, match=f"{tmp_path.name} is a folder without frames"):
        encode(processor, user(film(str(tmp_path), fps=2), "What?"))
    with pytest.raises(OSError, match=f"{tmp_path.name} is a folder without frames"):
        grounder(str(tmp_path), text="What?")


# Frames with their times


def test_frames_with_timestamps_use_them_as_times(grounder, processor, monkeypatch):
    times = [2.0, 2.5, 3.5, 6.0]
    expected = encode(processor, user(film(FRAMES[:4]), "<t3.0s>"), processor_kwargs={"video_metadata": [{"frame_times": times}]})
    assert expected["coordinate_values"][~expected["coordinate_values"].isnan()].tolist() == pytest.approx(
        [0.5]
    )  # halfway from frame 1 to frame 2
    for given in (times, tuple(times), np.array(times), torch.tensor(times)):
        found = encode(processor, user(film(list(FRAMES[:4]), timestamps=given), "<t3.0s>"))
        assert (
            torch.equal(found["coordinate_values"].nan_to_num(), expected["coordinate_values"].nan_to_num())
            and found.media_info == expected.media_info
        )
    found, _ = look(grounder, monkeypatch, {"video": list(FRAMES[:4]), "timestamps": times, "start": 2.6, "end": 4})
    assert found.media_info[0][0].frame_times == (2.5, 3.5)
    found = encode(processor, user(film([FRAMES[0]], timestamps=[3.0]), "What?"))
    assert found.media_info[0][0].time(0.0) == 3.0


@pytest.mark.parametrize("times", [[0, 1], [0, 2, 1], [0, 1, 1], [-1, 0, 1], [0, 1, float("nan")], [0, 1, "2"], [0, True, 2], 3, "012"])
def test_frames_with_invalid_timestamps_raises(grounder, processor, times):
    message = r"^timestamps \(`video_metadata` frame_times\) must be 3 ascending numbers of seconds from 0 on, one for each frame; got"
    with pytest.raises(ValueError, match=message):
        encode(processor, user(film(list(FRAMES[:3]), timestamps=times), "What?"))
    with pytest.raises(ValueError, match=message):
        grounder({"video": list(FRAMES[:3])}, text="What?", timestamps=times)


def test_frames_with_wrong_number_of_timestamps_raises_with_the_number(processor):
    with pytest.raises(ValueError, match=r"must be 3 ascending numbers .*; got 2 numbers: "):
        encode(processor, user(film(list(FRAMES[:3]), timestamps=[0, 1]), "What?"))


@pytest.mark.parametrize("key, value", [("fps", 2), ("timestamps", [0, 1])])
def test_video_file_with_fps_or_timestamps_raises(grounder, video, key, value):
    for source in (str(video), video.read_bytes()):
        with pytest.raises(ValueError, match=f"{key} can only be given for a list or folder of frames"):
            grounder({"video": source}, text="What?", **{key: value})


# Dataset rows


@pytest.fixture
def mixture(tmp_path):
    """Returns the samples that `load_mixture` makes of one video and one image."""
    write_media(tmp_path)
    rows = [
        {"task": "tvg", "text": "a dog runs", "span": [0.5, 1], "video": "clip.mp4", "start": 0.5},
        {"task": "rec", "text": "a dog", "boxes": [[1, 2, 30, 40]], "image": "photo.png"},
    ]
    rows[1]["box"] = rows[1].pop("boxes")[0]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"datasets": [{"json_path": "a.json", "format": "jsonl", "data_folder": "."}]}))
    return load_mixture(tmp_path / "mixture.yaml", cache_dir=str(tmp_path / "cache"))


def test_chat_template_accepts_samples_of_a_mixture_with_none_values(processor, mixture):
    assert len(mixture) == 2
    again = Dataset.from_list([{"messages": [{**m, "anything": None} for m in row["messages"]]} for row in mixture])  # through Arrow
    for row, copy in zip(mixture, again, strict=True):
        item = row["messages"][0]["content"][0]
        assert item["clip"] is None and item["text"] is None
        bare = [{key: value for key, value in item.items() if value is not None} for item in row["messages"][0]["content"]]
        expected = encode(processor, {"role": "user", "content": bare}, *row["messages"][1:])
        for messages in (row["messages"], copy["messages"]):
            found = encode(processor, *messages)
            assert torch.equal(found["input_ids"], expected["input_ids"]) and found.media_info == expected.media_info


def test_pipeline_dataset_gives_the_answer_of_each_row(grounder, video):
    rows = [
        {"video": str(video), "image": None, "text": "When?", "task": None, "start": 0.5},
        {"video": None, "image": Image.fromarray(FRAMES[0]), "text": "a dog", "task": "rec", "start": None},
        {"video": str(video), "image": None, "text": "When?", "task": None, "start": None},
    ]
    columns = datasets.Features(
        {"video": datasets.Value("string"), "image": datasets.Image(), "start": datasets.Value("float64")}
        | dict.fromkeys(("text", "task"), datasets.Value("string"))
    )
    table = Dataset.from_list(rows, features=columns)
    expected = [grounder({key: value for key, value in row.items() if value is not None}, max_new_tokens=3) for row in rows]
    for inputs in (table, table.to_iterable_dataset()):
        for options in ({}, {"batch_size": 2}):
            answers = grounder(inputs, max_new_tokens=3, **options)
            assert not isinstance(answers, list) and list(answers) == expected
    undecoded = table.cast_column("image", datasets.Image(decode=False))
    assert list(grounder(undecoded, max_new_tokens=3)) == expected
    assert list(grounder(table.select([]), max_new_tokens=3)) == []
    with pytest.raises(ValueError, match=r"exactly one of 'video' and 'image'.*; got train"):
        grounder(datasets.DatasetDict({"train": table}))


def test_pipeline_dataset_column_is_a_list_of_inputs(grounder, video, picture):
    paths = [str(video), str(picture)]
    chats = [[user(film(path) if path.endswith("mp4") else photo(path), "What?")] for path in paths]
    expected = grounder(paths, text="What?", max_new_tokens=3)
    table = Dataset.from_dict({"path": paths, "chat": chats})
    for inputs in (table["path"], table.to_iterable_dataset()["path"]):
        assert list(grounder(inputs, text="What?", max_new_tokens=3)) == expected
    assert [{**answer, "query": "What?"} for answer in grounder(table["chat"], max_new_tokens=3)] == expected


def test_pipeline_undecoded_videos_of_a_dataset_are_read(grounder, video):
    table = Dataset.from_list([{"video": {"bytes": video.read_bytes(), "path": None}}, {"video": {"bytes": None, "path": str(video)}}])
    answers = list(grounder(table, text="What?", max_new_tokens=3))
    assert answers == [grounder(str(video), text="What?", max_new_tokens=3)] * 2
    assert list(grounder(table["video"], text="What?", max_new_tokens=3)) == answers


def test_torchcodec_decoder_raises_with_advice(processor):
    decoder = type("VideoDecoder", (), {"__module__": "torchcodec.decoders._video_decoder"})()
    with pytest.raises(ValueError, match=r"VideoDecoder.*give the path or the bytes of the file .*decode=False"):
        encode(processor, user(film(decoder), "What?"))


def test_chat_template_accepts_samples_of_a_mixed_dataset(processor, tmp_path):
    for row in mixed_dataset(tmp_path, count=3):
        assert encode(processor, *row["messages"])["input_ids"].shape[0] == 1


@pytest.mark.parametrize(
    "rate, message", [({"nframes": 10_001}, "nframes of a video must be at most 10000"), ({"fps": 1e9}, "more than 10000 frames")]
)
def test_video_sampling_of_too_many_frames_raises(processor, video, rate, message):
    with pytest.raises(ValueError, match=message):
        encode(processor, user(film(str(video), **rate), "What?"))
