# SPDX-License-Identifier: Apache-2.0
"""`read_video` and `read_video_metadata`, and the decoding options of the processor and the pipeline."""

import numpy as np
import pytest
from PIL import Image

from llava_st_hf import read_video_metadata
from llava_st_hf.evaluation.report_samples import read_frames
from llava_st_hf.model.video_decoding_llava_st import VideoFileReader
from llava_st_hf.model.video_index_llava_st import InexactIndexError
from llava_st_hf.model.video_processing_llava_st import LlavaSTVideoProcessor
from llava_st_hf.model.video_reading_llava_st import read_video
from modeling_tests.media import moving_frames, write_cut, write_video
from modeling_tests.processors import model_for, tiny_processor


FRAMES = moving_frames(12, 48, 64)


@pytest.fixture
def video(tmp_path) -> str:
    return str(write_video(tmp_path / "clip.mp4", FRAMES, fps=10))


@pytest.fixture
def folder(tmp_path) -> str:
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    return str(tmp_path / "frames")


def test_read_video_metadata_folder_of_frames_has_size_and_count_without_rate(folder):
    metadata = read_video_metadata(folder)
    assert (metadata.total_num_frames, metadata.width, metadata.height) == (12, 64, 48)
    assert metadata.fps is None and metadata.duration is None and metadata.frames_indices is None
    assert dict(read_video_metadata(FRAMES)) == dict(metadata)


def test_read_video_folder_frames_are_sorted_by_number(folder):
    chunks = read_video(folder, lambda reader: list(reader.chunks([1, 2, 10])))
    assert [chunk[0].permute(1, 2, 0).numpy().tolist() for chunk in chunks] == [FRAMES[number].tolist() for number in (1, 2, 10)]


@pytest.mark.parametrize("source, message", [([FRAMES, FRAMES], "one video is read at a time; got 2"), ([], "empty list")])
def test_read_video_metadata_none_or_several_videos_raises(source, message):
    with pytest.raises(ValueError, match=message):
        read_video_metadata(source)


@pytest.mark.parametrize(
    "options",
    [{"allow_truncated": "yes"}, {"allow_truncated": 1}, {"video_backend": "foo"}, {"video_backend": 5}, {"download_limits": 5}],
    ids=str,
)
def test_video_options_of_wrong_type_raise_value_error_with_name(video, options):
    processor = tiny_processor()
    name = next(iter(options))
    for source in (video, FRAMES):
        for ask in (read_video_metadata, processor.video_processor, LlavaSTVideoProcessor(**options)):
            given = {} if isinstance(ask, LlavaSTVideoProcessor) and ask is not processor.video_processor else options
            with pytest.raises(ValueError, match=f"^`?{name}`? must be"):
                ask(source, **given)
        with pytest.raises(ValueError, match=f"^`?{name}`? must be"):
            processor(text="<video>\nWhat?", videos=source, **options)


@pytest.fixture
def inexact(monkeypatch) -> list[bool]:
    """Whether each read used counted frames; reads raise `InexactIndexError` until the frames are counted."""
    counted = []
    chunks, recounted = VideoFileReader.chunks, VideoFileReader.recounted
    indices_by_counting = []

    def promised_wrong(self, indices):
        is_counted = any(self.index is index for index in indices_by_counting)
        counted.append(is_counted)
        first, *others = chunks(self, indices)
        yield first
        if not is_counted:
            raise InexactIndexError("not where its packets state")
        yield from others

    def recount(self):
        reader = recounted(self)
        indices_by_counting.append(reader.index)
        return reader

    monkeypatch.setattr(VideoFileReader, "chunks", promised_wrong)
    monkeypatch.setattr(VideoFileReader, "recounted", recount)
    return counted


def test_read_video_inexact_index_is_read_again_with_counted_frames(video, inexact):
    assert read_video(video, lambda reader: sum(len(chunk) for chunk in reader.chunks(list(range(12))))) == 12
    assert inexact == [False, True]
    processed = LlavaSTVideoProcessor(num_frames=4)(video, return_tensors="pt", return_metadata=True)
    assert processed["video_metadata"][0].frames_indices == [0, 4, 7, 11] and inexact == [False, True] * 2
    assert len(read_frames(video, [0, 11])) == 2 and inexact == [False, True] * 3


# Plain arguments


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture
def cut(tmp_path) -> str:
    return str(write_cut(tmp_path / "cut.mkv"))


def ask(processor, how: str, path: str, **options):
    """Model inputs for one question about a video, from the processor called in one of several ways."""
    if how == "call":
        return processor(text="<video>When?", videos=path, return_tensors="pt", **options)
    if how == "videos_kwargs":
        return processor(text="<video>When?", videos=path, return_tensors="pt", videos_kwargs=options)
    content = [{"type": "video", "video": path}, {"type": "text", "text": "When?"}]
    template = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return processor.apply_chat_template([{"role": "user", "content": content}], processor_kwargs=options, **template)


@pytest.mark.parametrize("how", ["call", "videos_kwargs", "template"])
def test_processor_video_backend_and_allow_truncated_reach_the_decoder(processor, video, cut, how, monkeypatch):
    with pytest.raises(ValueError, match=r"video_backend must be one of 'pyav', 'decord'.*'opencv'"):
        ask(processor, how, video, video_backend="opencv")
    by_decord = []
    frames = VideoFileReader._decord_frames
    monkeypatch.setattr(VideoFileReader, "_decord_frames", lambda self, indices: by_decord.append(indices) or frames(self, indices))
    exact = ask(processor, how, video)
    assert not by_decord
    pixels = ask(processor, how, video, video_backend="decord")["pixel_values_videos"]
    assert by_decord and np.array_equal(pixels, exact["pixel_values_videos"])
    with pytest.raises(OSError, match=r"cut short.*allow_truncated=True \(--allow-truncated\)"):
        ask(processor, how, cut)
    assert "cut short" in ask(processor, how, cut, allow_truncated=True).media_info[0][0].notes[0]


def test_pipeline_video_backend_and_allow_truncated_reach_the_decoder(processor, video, cut):
    from llava_st_hf import VideoGroundingPipeline

    grounder = VideoGroundingPipeline(model=model_for(processor), processor=processor)
    question = {"text": "When?", "max_new_tokens": 2}
    with pytest.raises(ValueError, match="video_backend must be one of"):
        grounder(video, video_backend="opencv", **question)
    assert not any("cut short" in note for note in grounder(video, video_backend="decord", **question)["notes"])
    with pytest.raises(OSError, match="cut short"):
        grounder(cut, **question)
    whole, shorter = grounder([{"video": video}, {"video": cut}], allow_truncated=True, **question)
    assert "cut short" in shorter["notes"][0] and not any("cut short" in note for note in whole["notes"])
