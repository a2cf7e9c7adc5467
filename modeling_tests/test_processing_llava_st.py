# SPDX-License-Identifier: Apache-2.0
import functools
import http.server
import math
import pickle
import re
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, AutoVideoProcessor

from llava_st_hf import (
    LlavaSTConfig,
    LlavaSTForConditionalGeneration,
    LlavaSTImageProcessor,
    LlavaSTModel,
    LlavaSTProcessor,
    LlavaSTVideoProcessor,
    MediaInfo,
)
from llava_st_hf.model.inline_coordinates_llava_st import INLINE_COORDINATE
from modeling_tests.media import moving_frames, write_timed_video, write_video
from modeling_tests.processors import PICTURE, answer, encode, film, model_for, photo, settings_of, tiny_processor, tiny_tokenizer, user


FRAMES = moving_frames(20, 48, 64)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def video(folder):
    """20 frames of 64×48 at 10 frames per second."""
    return str(write_video(folder / "video.mp4", FRAMES, fps=10))


def encode_batch(processor, chats, **kwargs):
    return encode(processor, *chats, processor_kwargs={"padding": True}, **kwargs)


def text_of(processor, inputs, row=0):
    """Decoded prompt without media markers, patches and padding."""
    text = processor.tokenizer.decode(inputs["input_ids"][row], skip_special_tokens=False)
    return re.sub(r"<(?:slow_)?(?:vid|im)_(?:start|patch|end)>|<\|endoftext\|>", "", text)


def positions(inputs, row=0):
    row = inputs["coordinate_values"][row]
    return row[~row.isnan()].tolist()


# MediaInfo


@pytest.mark.parametrize(
    "kind",
    ["path", "Path", "file", "http", "array", "channels_first", "tensor", "pil_frames", "array_frames", "frame_paths"],
)  # fmt: skip
def test_processor_accepts_videos_as_path_url_array_tensor_and_list_of_frames(processor, video, folder, kind):
    if kind == "http":
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    frames = [Image.fromarray(frame) for frame in FRAMES]
    if kind == "frame_paths":
        for index, frame in enumerate(frames):
            frame.save(folder / f"{index:02d}.png")
    source = {
        "path": lambda: video,
        "Path": lambda: folder / "video.mp4",
        "file": lambda: f"file://{video}",
        "http": lambda: f"http://127.0.0.1:{server.server_port}/video.mp4",
        "array": lambda: FRAMES,
        "channels_first": lambda: FRAMES.transpose(0, 3, 1, 2),
        "tensor": lambda: torch.from_numpy(FRAMES),
        "pil_frames": lambda: frames,
        "array_frames": lambda: list(FRAMES),
        "frame_paths": lambda: [str(folder / f"{index:02d}.png") for index in range(20)],
    }[kind]()
    inputs = encode(processor, user(film(source), "When?"))
    if kind == "http":
        server.shutdown()
    is_file = kind in ("path", "Path", "file", "http")
    rate, duration = (10.0, 2.0) if is_file else (None, None)
    assert inputs.media_info == [[MediaInfo("video", 64, 48, rate, 0, 19, total_num_frames=20, duration=duration)]]
    expected = encode(processor, user(film(FRAMES), "When?"))
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    difference = (inputs["pixel_values_videos"] - expected["pixel_values_videos"]).abs()
    assert difference.mean() < 0.05 if is_file else difference.max() == 0


@pytest.mark.parametrize(
    "clip, first, last",
    [({"clip": [5, 12]}, 5, 12), ({"start": 0.5, "end": 1.3}, 5, 12), ({"start": 1.0}, 10, 19), ({"end": 0.5}, 0, 4), ({}, 0, 19)],
)
def test_processor_clip_in_frames_or_seconds_selects_these_frames(processor, video, clip, first, last):
    inputs = encode(processor, user(film(video, **clip), "What <t0.0>?"))
    assert inputs.media_info == [[MediaInfo("video", 64, 48, 10.0, first, last, total_num_frames=20, duration=2.0)]]
    expected = encode(processor, user(film(FRAMES[first : last + 1]), "What <t0.0>?"))
    assert (inputs["pixel_values_videos"] - expected["pixel_values_videos"]).abs().mean() < 0.05


def test_processor_clips_in_messages_and_arguments_raise(processor, video):
    with pytest.raises(ValueError, match="not both"):
        encode(processor, user(film(video, end=1.0), "When?"), processor_kwargs={"clips": [{"end": 1.0}]})


def test_processor_frames_with_fps_metadata_accept_seconds(processor):
    metadata = {"fps": 5.0, "total_num_frames": 20}
    inputs = encode(processor, user(film(FRAMES), {"type": "time", "time": 1.9}), processor_kwargs={"video_metadata": [metadata]})
    assert inputs.media_info[0][0].fps == 5.0
    assert positions(inputs) == [pytest.approx(9.5 / 19)]


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_processor_variable_frame_rate_uses_the_presentation_times(processor, folder, backend):
    times = [*(0.1 * index for index in range(20)), *(2.0 + index for index in range(8))]
    path = str(write_timed_video(folder / "varying.mp4", times))
    kwargs = {"processor_kwargs": {"video_backend": backend}}
    inputs = encode(processor, user(film(path), {"type": "time", "time": 2.0}), **kwargs)
    assert positions(inputs) == [pytest.approx(20 / 27, abs=1e-4)]
    assert inputs.media_info[0][0].time(20 / 27) == 2.0 and inputs.media_info[0][0].time(1.0) == 9.0
    inputs = encode(processor, user(film(path, start=1.9, end=5.0), {"type": "time", "time": 2.0}), **kwargs)
    media = inputs.media_info[0][0]
    assert (media.first_frame, media.last_frame) == (19, 22) and media.frame_times == pytest.approx((1.9, 2.0, 3.0, 4.0), abs=1e-4)
    assert positions(inputs) == [pytest.approx(1 / 3, abs=1e-3)]
    # Frames 20 and 27 are shown for one second each, whatever frames precede them.
    for clip, time, position in (((0.0, 2.8), 2.7, 1.0), ((9.2, 9.9), 9.8, 0.0)):
        inputs = encode(processor, user(film(path, start=clip[0], end=clip[1]), {"type": "time", "time": time}), **kwargs)
        assert positions(inputs) == [position]


@pytest.mark.parametrize("sampling", [{"num_frames": 1}, {"num_frames": 2}, {"fps": 0.3}, {"do_sample_frames": False}])
def test_processor_seconds_refer_to_the_clip_for_any_frame_sampling(processor, video, sampling):
    inputs = encode(processor, user(film(video, clip=[5, 15]), {"type": "time", "time": 1.0}), processor_kwargs=sampling)
    assert inputs.media_info == [[MediaInfo("video", 64, 48, 10.0, 5, 15, total_num_frames=20, duration=2.0)]]
    assert positions(inputs) == [pytest.approx(0.5)]


def test_processor_presampled_frames_keep_their_times(processor):
    def media(frames, indices, **metadata):
        metadata = {"fps": 10.0, "frames_indices": indices, **metadata}
        inputs = encode(processor, user(film(frames), "When?"), processor_kwargs={"video_metadata": [metadata]})
        return inputs.media_info[0][0]

    consecutive = media(FRAMES, list(range(50, 70)), total_num_frames=20)
    assert consecutive == MediaInfo("video", 64, 48, 10.0, 50, 69, total_num_frames=70, duration=7.0)
    even = media(FRAMES[:4], [0, 30, 60, 90], total_num_frames=100)
    assert even == MediaInfo("video", 64, 48, 10.0, 0, 90, total_num_frames=100, duration=10.0)
    uneven = media(FRAMES[:4], [0, 10, 20, 90], total_num_frames=100)
    assert [uneven.time(i / 3) for i in range(4)] == [0.0, 1.0, 2.0, 9.0]
    assert [uneven.frame(i / 3) for i in range(4)] == [0, 10, 20, 90]
    unknown = media(FRAMES[:4], [0, 10, 20, 90], fps=None)
    assert unknown.time(1.0) is None and unknown.frame(2 / 3) == 20
    with pytest.raises(ValueError, match="must ascend"):
        media(FRAMES[:4], [0, 20, 10, 90])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"num_frames": -1}, "num_frames must be a whole number of at least 1, got -1"),
        ({"num_frames": "5"}, "num_frames must be a whole number of at least 1, got '5'"),
        ({"num_frames": 2.5}, r"num_frames must be a whole number of at least 1, got 2\.5"),
        ({"fps": 0}, "fps must be a finite number of frames per second above 0, got 0"),
        ({"fps": -1}, "fps must be .* got -1"),
        ({"fps": "2"}, "fps must be .* got '2'"),
        ({"clips": {"start": 0.0}}, "`clips` must be a list, one per video"),
        ({"video_metadata": [{"fps": "2"}]}, "`video_metadata` fps must be .* got '2'"),
        ({"video_metadata": [{"fsp": 2}]}, "unknown key 'fsp'"),
        ({"video_metadata": 2}, "`video_metadata` must be a list"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_processor_invalid_sampling_arguments_raise(processor, kwargs, message, nested):
    kwargs = {"videos_kwargs": kwargs} if nested else kwargs
    with pytest.raises(ValueError, match=message):
        processor(text="<video>When?", videos=FRAMES, **kwargs)


@pytest.mark.parametrize("kwargs", [{"size": {"height": 56, "width": 56}}, {"do_resize": False}])
def test_processor_pixels_of_another_size_than_the_tokens_raise(processor, kwargs):
    height, width = (56, 56) if "size" in kwargs else (48, 64)
    for kind, media in (("image", {"images": PICTURE, "text": "<image>"}), ("video", {"videos": FRAMES, "text": "<video>"})):
        with pytest.raises(ValueError, match=f"The processed {kind} has {height}x{width} pixels .* is that of 126x126"):
            processor(**media, **{f"{kind}s_kwargs": kwargs})
    own_size = np.zeros((126, 126, 3), dtype=np.uint8)
    assert processor(images=own_size, text="<image>", do_resize=False, size={"height": 126, "width": 126})["pixel_values"]


def test_processor_image_size_is_that_after_exif_rotation(processor, folder):
    sideways = Image.fromarray(PICTURE)
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(folder / "sideways.jpg", exif=exif)
    inputs = encode(processor, user(photo(str(folder / "sideways.jpg")), photo(), "Where?"))
    assert inputs.media_info == [[MediaInfo("image", 48, 64), MediaInfo("image", 64, 48)]]


def test_processor_media_tokens_are_the_streams_with_their_markers(processor):
    def stream(kind, patch, count):
        return f"<{kind}_start>" + f"<{patch}>" * (count - 2) + f"<{kind}_end>"

    inputs = encode(processor, user(photo(), film(FRAMES), "Hi"))
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    # 9×9 patches; 10 frames of 1 fast cell, 2 slow frames of 3×3 cells
    media = f"{stream('im', 'im_patch', 81)}\n{stream('vid', 'vid_patch', 10)}{stream('slow_vid', 'vid_patch', 18)}\n"
    assert text == f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{media}Hi<|im_end|>\n"


@pytest.mark.parametrize("frames", [1, 4, 5, 6, 23])
def test_processor_number_of_video_tokens_depends_on_the_frames(processor, frames):
    inputs = encode(processor, user(film(FRAMES), "Hi"), processor_kwargs={"num_frames": frames})
    ids = set(processor.video_token_ids)
    found = sum(token in ids for token in inputs["input_ids"][0].tolist())
    assert found == frames + math.ceil(frames / 5) * 9
    assert processor._get_num_multimodal_tokens(video_sizes=[(frames, 48, 64)])["num_video_tokens"] == [found]
    assert processor._get_num_multimodal_tokens(image_sizes=[(48, 64)])["num_image_tokens"] == [81]


# Coordinates


def test_processor_inline_coordinates_become_nearest_tokens_and_exact_values(processor):
    inputs = encode(processor, user(photo(), "at [<w0.352><h0.442><w1><h.9>] or <t0.409>"), answer("here <w0.5>"))
    assert text_of(processor, inputs).endswith(
        "at [<WIDTH-035><HEIGHT-044><WIDTH-099><HEIGHT-089>] or <TEMP-040><|im_end|>\n<|im_start|>assistant\nhere <WIDTH-050><|im_end|>\n"
    )
    assert positions(inputs) == pytest.approx([0.352, 0.442, 1.0, 0.9, 0.409, 0.5])


def test_processor_coordinate_values_are_nan_except_at_inline_coordinates(processor):
    inputs = encode(processor, user(film(FRAMES), "a <t0.1> <TEMP-007> b <h0.3>"))
    given = ~inputs["coordinate_values"][0].isnan()
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0][given].tolist())
    assert tokens == ["<TEMP-010>", "<HEIGHT-030>"]  # a literal coordinate token has no exact position


def test_processor_text_without_inline_coordinates_has_no_coordinate_values(processor):
    assert "coordinate_values" not in encode(processor, user(photo(), "the dog at <TEMP-007>"))


def test_processor_seconds_and_pixels_refer_to_the_preceding_image_or_video(processor, video):
    inputs = encode(
        processor,
        user(
            photo(np.zeros((100, 200, 3), np.uint8)),
            {"type": "box", "box": [20, 10, 200, 100]},
            film(video, clip=[5, 15]),
            {"type": "span", "start": 0.5, "end": 1.0},
            {"type": "time", "time": 1.5},
            " <w32px><h12px>",
        ),
    )
    assert positions(inputs) == pytest.approx([0.1, 0.1, 1.0, 1.0, 0.0, 0.5, 1.0, 0.5, 0.25])
    assert text_of(processor, inputs).count("[<WIDTH-010><HEIGHT-010><WIDTH-099><HEIGHT-099>]") == 1


def test_processor_seconds_in_a_later_turn_refer_to_the_video_of_an_earlier_one(processor, video):
    inputs = encode(processor, user(film(video), "Hi"), answer("It is at <t0.95s>."), user("And {<t0s><t1.9s>}?"))
    assert positions(inputs) == pytest.approx([0.5, 0.0, 1.0])


@pytest.mark.parametrize(
    "text, message",
    [
        ("<t1.7>", "'<t1.7>' is 1.7"),
        ("<t>", "'<t>' has no number"),
        ("<tnan>", "'<tnan>' is not a finite number"),
        ("<w-inf>", "'<w-inf>' is not a finite number"),
        ("<w1s>", "'<w1s>' has the wrong unit"),
        ("<t5px>", "'<t5px>' has the wrong unit"),
        ("<t99s>", "<t99s> is outside the clip, which lasts from 0 to 2 seconds"),
        ("<w65.5px>", "<w65.5px> is outside the video, whose width is 64 pixels"),
        ("{<t0.5><t0.4>}", "{<t0.5><t0.4>}' ends before it starts"),
        ("{<t1.5s>, <t1.4s>}", "ends before it starts"),
        ("[<w0.5><h0.1><w0.4><h0.2>]", "is reversed"),
        ("[<w5px> <h9px> <w6px> <h8px>]", "is reversed"),
        ("<t 0.5>", "'<t 0.5>' is not a coordinate. Write <t0.409>"),
        ("<t1:30s>", "'<t1:30s>' is not a coordinate"),
        ("[<w0.1><h0.2>]", "'[<w0.1><h0.2>]' is not a box"),
        ("{<t0.5>}", "'{<t0.5>}' is not a span"),
        ("<h1>", "'<h1>' is an HTML heading"),
        ("<TEMP-100>", "'<TEMP-100>' is not a token of this model, which has 100 temporal bins"),
        ("<WIDTH-INPUT>", "special token '<WIDTH-INPUT>'"),
        ("<TEMP-OUTPUT>", "special token '<TEMP-OUTPUT>'"),
        ("<im_patch>", "special token '<im_patch>'"),
        ("<video>", "there are 2 <video> and 1 videos"),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_processor_invalid_coordinates_in_any_message_raise_with_their_text(processor, video, role, text, message):
    chat = [user(film(video), "Hi"), answer("Hi")]
    chat[role == "assistant"]["content"].append({"type": "text", "text": text})
    with pytest.raises(ValueError, match=re.escape(message)):
        encode(processor, *chat)


def test_processor_tags_of_other_languages_are_plain_text(processor):
    text = "<table> <h1 class='x'> <to> <width> a<b </h1>"
    assert text_of(processor, encode(processor, user(text))).count(text) == 1


@pytest.mark.parametrize("box", ["[<w0><h0><w1><h1>]", "[<w0>, <h0>, <w1>, <h1>]", "[<w0.0px><h0px><w1.0><h1>]"])
def test_processor_h1_at_the_end_of_a_box_is_the_bottom_edge(processor, box):
    inputs = encode(processor, user(photo(), f"Where? {box}"), answer("At <w1><h1>."))
    assert positions(inputs) == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert text_of(processor, inputs).endswith("<WIDTH-099><HEIGHT-099>.<|im_end|>\n")


def test_processor_coordinate_split_over_content_items_is_one_coordinate(processor):
    assert positions(encode(processor, user("<t0.", "5> and [<w0><h0>", "<w1><h1>]"))) == [0.5, 0.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="'<t0,5>' is not a coordinate"):
        encode(processor, user("<t0", ",5>"))


def test_processor_seconds_without_a_video_of_known_frame_rate_raise(processor):
    with pytest.raises(ValueError, match="'<t1s>' is in seconds, but there is no video or image before it"):
        encode(processor, user("at <t1s>"))
    with pytest.raises(ValueError, match="<t1s> is a time, but the media before it is an image"):
        encode(processor, user(photo(), "at <t1s>"))
    with pytest.raises(ValueError, match="frame rate of the video is unknown"):
        encode(processor, user(film(FRAMES), "at <t1s>"))


def test_processor_every_position_becomes_its_nearest_bin(processor):
    values = np.linspace(0, 1, 40)
    inputs = encode(processor, user("".join(f"<t{v!r}><h{v!r}><w{v!r}>" for v in values.tolist())))
    assert positions(inputs) == pytest.approx(np.repeat(values, 3).tolist())
    written = re.findall(r"<(?:TEMP|HEIGHT|WIDTH)-(\d{3})>", text_of(processor, inputs))
    assert [int(k) for k in written] == [round(v * 99) for v in np.repeat(values, 3)]


def test_stage_1_processor_with_coordinates_in_the_text_raises():
    processor = tiny_processor(tokenizer=tiny_tokenizer(0, 0))
    assert encode(processor, user(photo(), "Hi"))["input_ids"].shape[1] > 81
    with pytest.raises(ValueError, match="no coordinate tokens"):
        encode(processor, user(photo(), "at <w0.5>"))


def test_processor_ignore_prompt_x_coordinates_replaces_widths_in_prompts_only():
    processor = tiny_processor(ignore_prompt_x_coordinates=True)
    inputs = encode(processor, user(photo(), "<w0.1><h0.2>; <WIDTH-025>"), answer("<WIDTH-025><w0.5>"), user("<w0.3>"))
    text = text_of(processor, inputs)
    assert "<WIDTH-INPUT><HEIGHT-020>; <WIDTH-INPUT><|im_end|>" in text
    assert "<|im_start|>assistant\n<WIDTH-025><WIDTH-050><|im_end|>" in text  # 99/2 rounds to even
    assert text.endswith("user\n<WIDTH-INPUT><|im_end|>\n")
    assert positions(inputs) == pytest.approx([0.1, 0.2, 0.5, 0.3])


# Template and assistant masks


def test_processor_assistant_mask_marks_answers_and_their_end_tokens(processor, video):
    chat = [
        user(film(video), "Is it {<t0.5s><t1.25s>} or [<w3px><h4px><w5px><h6px>]?"),
        answer("It is {<t0.55s><t1.5s>}, at <t0.123456>."),
        user(photo(), "And <w0.111111>?"),
        answer("No <TEMP-025>."),
    ]
    inputs = encode(processor, *chat, return_assistant_tokens_mask=True)
    supervised = processor.tokenizer.decode(inputs["input_ids"][0][inputs["assistant_masks"][0].bool()])
    assert supervised == "It is {<TEMP-029><TEMP-078>}, at <TEMP-012>.<|im_end|>No <TEMP-025>.<|im_end|>"


def test_processor_assistant_mask_of_a_padded_batch_equals_single_chats(processor, video):
    chats = [[user(film(video), "<t0.5s>"), answer("<t1s> yes")], [user("Hi"), answer("ho")], [user(photo(), "Hm"), answer("<w0.2>")]]
    batch = encode_batch(processor, chats, return_assistant_tokens_mask=True)
    for row, chat in enumerate(chats):
        single = encode(processor, *chat, return_assistant_tokens_mask=True)
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["assistant_masks"][row, -length:], single["assistant_masks"][0])
        assert batch["assistant_masks"][row, :-length].sum() == 0


def test_chat_template_adds_the_default_system_message_only_if_there_is_none(processor):
    system = {"role": "system", "content": "Be brief."}
    assert processor.apply_chat_template([user("Hi")], add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template([system, user("Hi")]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_apply_chat_template_unknown_content_type_raises(processor):
    with pytest.raises(ValueError, match="hologram"):
        processor.apply_chat_template([user({"type": "hologram"})])


# Batches


def chats_of(video):
    return [
        [user(film(video), "When {<t0.5s><t1s>}?")],
        [user("Just text.")],
        [user(photo(), photo(np.zeros((10, 30, 3), np.uint8)), "Where <w15px>?")],
        [user("No position, <TEMP-003>."), answer("Yes."), user(photo(), film(FRAMES), film(video, end=1.0), "Which?")],
        [user(film([Image.fromarray(f) for f in FRAMES[:5]]), "<t0.25>")],
    ]


def test_processor_mixed_batch_equals_single_chats(processor, video):
    chats = chats_of(video)
    batch = encode_batch(processor, chats, add_generation_prompt=True)
    images, videos = [], []
    for row, chat in enumerate(chats):
        single = encode(processor, *chat, add_generation_prompt=True)
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, -length:], single["input_ids"][0])
        assert batch["attention_mask"][row].sum() == length and batch["attention_mask"][row, -length:].all()
        expected = single.get("coordinate_values", torch.full((1, length), math.nan))
        assert torch.equal(batch["coordinate_values"][row, -length:].nan_to_num(-1), expected[0].nan_to_num(-1))
        assert batch["coordinate_values"][row, :-length].isnan().all()
        assert batch.media_info[row] == single.media_info[0]
        images += [single[key] for key in ("pixel_values",) if key in single]
        videos += [single[key] for key in ("pixel_values_videos",) if key in single]
    assert torch.equal(batch["pixel_values"], torch.cat(images))
    assert torch.equal(batch["pixel_values_videos"], torch.cat(videos))


def test_processor_text_only_batch_has_no_media_and_no_coordinate_values(processor):
    batch = encode_batch(processor, [[user("a")], [user("longer")]])
    assert set(batch) == {"input_ids", "attention_mask"} and batch.media_info == [[], []]


def test_processor_truncation_drops_coordinate_values_with_their_tokens(processor):
    chat = [user("a <t0.1> b <t0.2> c <t0.3> d")]
    whole = encode(processor, *chat)
    for length in range(40, whole["input_ids"].shape[1]):
        cut = encode(processor, *chat, processor_kwargs={"truncation": True, "max_length": length})
        assert cut["input_ids"].shape[1] == length
        if "coordinate_values" in cut:
            assert torch.equal(cut["coordinate_values"].nan_to_num(-1), whole["coordinate_values"][:, :length].nan_to_num(-1))


def test_processor_truncation_from_the_left_keeps_the_last_coordinate_values(processor):
    other = tiny_processor(tokenizer=tiny_tokenizer(truncation_side="left"))
    cut = encode(other, user("a <t0.1> b <t0.2> c <t0.3>"), processor_kwargs={"truncation": True, "max_length": 8})
    assert positions(cut) == pytest.approx([0.2, 0.3])


def test_processor_truncation_of_media_tokens_raises(processor):
    with pytest.raises(ValueError, match=r"Truncation left \d+ of 81 image tokens. Raise max_length above 90"):
        encode(processor, user(photo(), "Hi"), processor_kwargs={"truncation": True, "max_length": 90})


@pytest.mark.parametrize(
    "text, images, message",
    [
        (["<image> a"], [PICTURE, PICTURE], "there are 1 <image> and 2 images"),
        (["<image><image>"], [PICTURE], "there are 2 <image> and 1 images"),
        (["<image>"], None, "there are 1 <image> and 0 images"),
        (["a"], [PICTURE], "there are 0 <image> and 1 images"),
        (["<video>"], [PICTURE], "there are 0 <image> and 1 images"),
        ([""], None, "The prompt is empty"),
        ([5], None, "`text` must be a string or a list of strings"),
    ],
)
def test_processor_number_of_media_other_than_of_placeholders_raises(processor, text, images, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processor(text=text, images=images)


def test_processor_call_without_inputs_or_with_audio_raises(processor):
    with pytest.raises(ValueError, match="at least one input"):
        processor()
    with pytest.raises(ValueError, match="`audio` is not supported"):
        processor(text="a", audio=np.zeros(10))


# Media metadata and post-processing


def test_batch_feature_keeps_media_info_on_pickling_and_casting_but_not_as_model_input(processor, video):
    inputs = encode(processor, user(film(video), "<t0.5>"))
    media = inputs.media_info
    assert "media" not in inputs
    copied = pickle.loads(pickle.dumps(inputs))
    assert copied.media_info == media and torch.equal(copied["input_ids"], inputs["input_ids"])
    moved = inputs.to(torch.bfloat16)
    assert moved.media_info == media and moved["pixel_values_videos"].dtype == torch.bfloat16
    assert moved["input_ids"].dtype == torch.long


def test_post_process_grounding_returns_seconds_for_model_inputs_of_the_processor(processor, video):
    inputs = encode(processor, user(film(video, clip=[5, 15]), "When?"), add_generation_prompt=True)
    assert model_for(processor)(**inputs).logits.shape[:2] == inputs["input_ids"].shape
    written = processor.tokenizer("{<TEMP-000><TEMP-099>}, a dog.<|im_end|>", return_tensors="pt")["input_ids"]
    generated = torch.cat((inputs["input_ids"], written), dim=1)
    (read,) = processor.post_process_grounding(generated, inputs)
    assert read == {
        "text": "{<TEMP-000><TEMP-099>}, a dog.",
        "events": [{"start": 0.5, "end": 1.5, "caption": "a dog", "boxes": []}],
        "notes": [],
        "media": inputs.media_info[0][0].to_dict(),
    }
    assert processor.post_process_grounding(written, media_info=inputs.media_info) == [read]
    with pytest.raises(ValueError, match="does not begin with the prompt"):
        processor.post_process_grounding(generated[:, 1:], inputs)
    with pytest.raises(ValueError, match="one entry for each of the 1 answers, got None"):
        processor.post_process_grounding(written)


def test_processor_decoding_keeps_coordinate_tokens_and_removes_other_special_tokens(processor):
    ids = processor.tokenizer("<|im_start|>a <TEMP-001><vid_patch>b<|im_end|><|endoftext|>", return_tensors="pt")["input_ids"]
    assert processor.post_process_image_text_to_text(ids) == ["a <TEMP-001>b"]
    assert processor.post_process_image_text_to_text(ids[0]) == ["a <TEMP-001>b"]
    assert "<|im_end|>" in processor.post_process_image_text_to_text(ids, skip_special_tokens=False)[0]
    # the embedding matrix may be larger than the vocabulary of the tokenizer
    assert processor.decode_answer([*ids[0].tolist(), len(processor.tokenizer) + 5]) == "a <TEMP-001>b"


# Saving and loading


def test_processor_saved_and_loaded_with_auto_classes_gives_equal_inputs(folder, video):
    processor = tiny_processor(num_temporal_bins=50, num_spatial_bins=20, ignore_prompt_x_coordinates=True, use_downsample_image=True)
    processor.save_pretrained(folder / "saved")
    expected = encode(processor, user(photo(), film(video), "{<t0.5s><t1s>} <w0.3>"))
    for cls in (LlavaSTProcessor, AutoProcessor):
        loaded = cls.from_pretrained(folder / "saved")
        assert type(loaded) is LlavaSTProcessor and settings_of(loaded) == settings_of(processor)
        assert (loaded.num_temporal_bins, loaded.num_spatial_bins) == (50, 20)
        inputs = encode(loaded, user(photo(), film(video), "{<t0.5s><t1s>} <w0.3>"))
        assert all(torch.equal(inputs[key].nan_to_num(-1), expected[key].nan_to_num(-1)) for key in expected)
        assert inputs.media_info == expected.media_info
    assert type(AutoImageProcessor.from_pretrained(folder / "saved")) is LlavaSTImageProcessor
    assert type(AutoVideoProcessor.from_pretrained(folder / "saved")) is LlavaSTVideoProcessor
    assert len(AutoTokenizer.from_pretrained(folder / "saved")) == len(processor.tokenizer)


def test_processor_saved_with_a_custom_chat_template_keeps_it(folder):
    tiny_processor(chat_template="{{ messages[0]['content'] }}").save_pretrained(folder / "template")
    assert AutoProcessor.from_pretrained(folder / "template").chat_template == "{{ messages[0]['content'] }}"


def test_processor_tokenizer_of_another_model_raises():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(ValueError, match=r"The tokenizer has no <im_start>.*Use the tokenizer of a LLaVA-ST model"):
        LlavaSTProcessor(LlavaSTImageProcessor(), tokenizer, LlavaSTVideoProcessor())


def test_remote_code_without_the_package_installed_loads_and_generates(tmp_path, monkeypatch):
    classes = {
        LlavaSTConfig: "AutoConfig", LlavaSTModel: "AutoModel", LlavaSTForConditionalGeneration: "AutoModelForImageTextToText",
        LlavaSTProcessor: "AutoProcessor", LlavaSTImageProcessor: "AutoImageProcessor", LlavaSTVideoProcessor: "AutoVideoProcessor",
    }  # fmt: skip
    for cls, auto in classes.items():
        monkeypatch.setattr(cls, "_auto_class", auto)  # as register_for_auto_class does, but reverted after the test
    processor = tiny_processor()
    model_for(processor).save_pretrained(tmp_path / "hub")
    processor.save_pretrained(tmp_path / "hub")
    script = """
        import sys
        sys.modules["llava_st_hf"] = None  # importing it fails
        import numpy as np
        from transformers import AutoModelForImageTextToText, AutoProcessor
        processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
        frames = np.zeros((5, 32, 48, 3), np.uint8)
        chat = [{"role": "user", "content": [{"type": "video", "video": frames}, {"type": "text", "text": "<t0.5>"}]}]
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
        generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        print(type(model).__module__.split(".")[0], len(processor.post_process_grounding(generated, inputs)))
    """
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "hub")], capture_output=True, text=True)
    assert done.stdout.strip() == "transformers_modules 1", done.stderr[-2000:]


def test_inline_coordinate_pattern_matches_each_axis():
    assert [m[0] for m in INLINE_COORDINATE.finditer("<t0.409>, <h0.442> <w0.352>")] == ["<t0.409>", "<h0.442>", "<w0.352>"]


def test_batch_feature_cast_to_bfloat16_keeps_float32_coordinate_values():
    inputs = tiny_processor()(text="<t0.409>", return_tensors="pt").to(torch.bfloat16)
    assert inputs["coordinate_values"].dtype == torch.float32 and inputs["coordinate_values"].nan_to_num().max() == torch.tensor(0.409)
