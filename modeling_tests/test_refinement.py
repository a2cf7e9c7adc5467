# SPDX-License-Identifier: Apache-2.0
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from llava_st_hf import Box, Event, Grounding, MediaInfo
from llava_st_hf.refinement import (
    DetectionRefiner,
    Detections,
    Linking,
    ObjectDetector,
    Target,
    TextSegmenter,
    VideoSegmenter,
    decode_mask,
    encode_mask,
    load,
    refine_answer,
)
from llava_st_hf.refinement.masks import mask_box
from llava_st_hf.refinement.segmenters import choose_prompts, read_reversed
from llava_st_hf.refinement.tracks import choose_track, pairwise_iou
from modeling_tests.media import write_timed_video, write_video
from modeling_tests.tiny_refiners import DETECTORS, WhiteSquares, square_frames, tiny_detector, tiny_sam2, tiny_sam3


SIZE = (96, 48)  # width and height of the frames in pixels


def boxes_at(*frames: int, **values) -> dict[int, Box]:
    """Boxes around the white squares of `square_frames`."""
    return {frame: Box(2.0 * frame, 16, 2.0 * frame + 16, 32, frame=frame, **values) for frame in frames}


def target(frames: np.ndarray, indices, answer_boxes: dict[int, Box], text: str = "red circle") -> Target:
    return Target(text, list(indices), answer_boxes, *SIZE, lambda wanted: (frames[index] for index in wanted))


def noise(num_frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num_frames, SIZE[1], SIZE[0], 3), dtype=np.uint8)


# Masks


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_mask_encoding_is_that_of_pycocotools(mask):
    counts = encode_mask(mask)
    assert counts == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(decode_mask(counts, *mask.shape), mask)


def test_mask_encoding_of_long_runs_is_that_of_pycocotools():
    mask = np.zeros((700, 900), bool)
    mask[100:600, 40:70], mask[300, 800] = True, True
    assert encode_mask(mask) == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(decode_mask(encode_mask(mask), 700, 900), mask)


@pytest.mark.parametrize("counts", ["", "04", "ÿ", "PPP", "0"])
def test_decode_mask_of_another_size_or_no_encoding_raises(counts):
    with pytest.raises(ValueError, match="COCO run-length encoding"):
        decode_mask(counts, 3, 5)


def test_mask_box_has_the_outer_edges_of_the_pixels():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 5] = True
    assert mask_box(mask) == (5, 2, 6, 4) and mask_box(np.zeros((6, 8), bool)) is None


# Choice of a track


def sum_of(path, detections, answers, linking) -> float:
    """The sum that `choose_track` maximizes, of one choice per frame; None is no detection."""
    total, before = 0.0, None
    for (frame, found), place in zip(detections.items(), path, strict=True):
        answer = None if answers.get(frame) is None else np.array([answers[frame].xyxy])
        box = answer if place is None else found.boxes[place : place + 1]
        if place is not None:
            iou = 0.0 if answer is None else pairwise_iou(box, answer)[0, 0]
            if answer is not None and iou < linking.min_agreement:
                return -np.inf
            total += found.scores[place] + linking.agreement * iou
        elif answer is not None:
            total += linking.agreement * linking.min_agreement
        if before is not None and box is not None:
            total += linking.motion * pairwise_iou(before, box)[0, 0]
        before = box
    return total


@pytest.mark.parametrize("seed", range(12))
def test_choose_track_is_the_best_of_all_tracks(seed):
    rng = np.random.default_rng(seed)
    detections, answers = {}, {}
    for frame in range(4):
        corners = rng.uniform(0, 20, (3, 2))
        detections[frame] = Detections(np.concatenate([corners, corners + rng.uniform(5, 15, (3, 2))], axis=1), rng.uniform(0.1, 1, 3))
        if seed % 3 and (frame or seed % 2):
            answers[frame] = Box(5, 5, 20, 20, frame=frame)
    linking = Linking(agreement=rng.uniform(0, 2), motion=rng.uniform(0, 2), min_agreement=rng.uniform(0, 0.3))
    track = choose_track(detections, answers, linking)
    paths = itertools.product([None, 0, 1, 2], repeat=4)
    best = max(paths, key=lambda path: sum_of(path, detections, answers, linking))
    expected = {frame: detections[frame].boxes[place] for frame, place in enumerate(best) if place is not None}
    assert {frame: pytest.approx(expected[frame], abs=0.01) for frame in expected} == {frame: box.xyxy for frame, box in track.items()}


def test_choose_track_ignores_a_better_scored_object_elsewhere():
    own, other = [10, 10, 30, 30], [60, 10, 80, 30]
    detections = {frame: Detections(np.array([other, own]), np.array([0.95, 0.2]), ("other", "own")) for frame in range(3)}
    answers = {frame: Box(12, 8, 33, 30, frame=frame) for frame in range(3)}
    assert [box.mask for box in choose_track(detections, answers, Linking()).values()] == ["own"] * 3
    assert [box.mask for box in choose_track(detections, {}, Linking()).values()] == ["other"] * 3


@pytest.mark.parametrize("values", [{"agreement": -1}, {"motion": float("nan")}, {"min_agreement": 1.5}, {"agreement": "1"}])
def test_linking_names_a_weight_that_is_not_valid(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Linking(**values)


# Object detectors of transformers


class Fixed(torch.nn.Module):
    """A detector whose outputs have one box in all places: centre, width and height as fractions of the image."""

    def __init__(self, model, box):
        super().__init__()
        self.model, self.box, self.config, self.device, self.dtype = model, box, model.config, model.device, model.dtype

    def forward(self, **inputs):
        output = self.model(**inputs)
        for name in ("pred_boxes", "decoder_coord_logits"):
            if name in output:
                output[name] = torch.tensor(self.box).expand_as(output[name])
        return output


@pytest.mark.parametrize("kind", DETECTORS)
def test_object_detector_boxes_are_in_pixels_of_the_frame(kind):
    model, processor = tiny_detector(kind)
    found = load((Fixed(model, [0.25, 0.25, 0.5, 0.25]), processor), threshold=0.0).detect([Image.fromarray(noise(1)[0])], "red circle")
    scale = 96 if kind == "owlv2" else 48  # OWLv2 pads images to a square, at the bottom and at the right
    assert np.allclose(found[0].boxes, [0, scale / 8, 48, scale * 3 / 8], atol=0.01) and len(found[0].scores) > 0


@pytest.mark.parametrize("kind", DETECTORS)
def test_object_detector_of_a_batch_is_that_of_single_frames(kind):
    frames = noise(3)
    batched, single = (load(tiny_detector(kind), threshold=0.0, batch_size=size) for size in (3, 1))
    for (_, one), (_, other) in zip(
        batched.detections(target(frames, range(3), {}), "red circle"),
        single.detections(target(frames, range(3), {}), "red circle"),
        strict=True,
    ):
        order, other_order = (np.lexsort(found.boxes.round(2).T) for found in (one, other))
        assert np.allclose(one.boxes[order], other.boxes[other_order], atol=0.02)
        assert np.allclose(one.scores[order], other.scores[other_order], atol=1e-3)


def test_object_detector_threshold_excludes_lower_scores():
    image = [Image.fromarray(noise(1)[0])]
    scores = load(tiny_detector("owlv2"), threshold=0.0).detect(image, "red circle")[0].scores
    limit = float(np.median(scores))
    assert sorted(load(tiny_detector("owlv2"), threshold=limit).detect(image, "red circle")[0].scores) == sorted(scores[scores > limit])


@pytest.mark.parametrize(("kind", "limit"), [("owlv2", 16), ("grounding-dino", 11)])
def test_object_detector_notes_a_text_that_is_cut(kind, limit):
    long = target(noise(1), [0], {}, text="the red circle. " * 5)
    load(tiny_detector(kind)).locate(long)
    (note,) = long.notes
    assert note.startswith(f"The detector reads {limit} tokens: it looked for 'the red") and "." not in note.split("'")[1]


def test_detection_refiner_without_a_text_notes_it():
    nameless = target(noise(1), [0], {}, text="")
    assert load(tiny_detector("owlv2")).locate(nameless) == {} and "neither a caption nor a text" in nameless.notes[0]


def test_detection_refiner_with_a_text_looks_for_it():
    asked = []

    class Recorder(DetectionRefiner):
        def detect(self, images, text):
            asked.append((len(images), text))
            return [Detections(np.array([[-5, 0, 200, 10]]), np.array([0.5])) for _ in images]

    track = Recorder(text="a dog", batch_size=2).locate(target(noise(7), [4, 5, 6], {}))
    assert asked == [(2, "a dog"), (1, "a dog")]
    assert {frame: box.xyxy for frame, box in track.items()} == dict.fromkeys((4, 5, 6), (0, 0, 96, 10))


# Video segmentation models of transformers


def segment_all(frames: np.ndarray, start: int, box: Box) -> dict[int, np.ndarray]:
    """Masks by transformers' own propagation over a video that is in memory as a whole."""
    model, processor = tiny_sam2()
    with torch.inference_mode():
        session = processor.init_video_session(video=list(frames))
        processor.add_inputs_to_inference_session(inference_session=session, frame_idx=start, obj_ids=1, input_boxes=[[list(box.xyxy)]])
        outputs = list(model.propagate_in_video_iterator(session, start_frame_idx=start))
        masks = {out.frame_idx: processor.post_process_masks([out.pred_masks], original_sizes=[SIZE[::-1]])[0] for out in outputs}
    return {frame: mask[0, 0].numpy() for frame, mask in masks.items()}


def test_video_segmenter_masks_are_those_of_a_video_in_memory():
    frames, prompt = noise(12), Box(10, 10, 40, 40, frame=0)
    found = VideoSegmenter(*tiny_sam2(), min_agreement=0).locate(target(frames, range(12), {0: prompt}))
    expected = segment_all(frames, 0, prompt)
    assert len(found) >= 11  # the masks of a few frames may be empty
    for frame, box in found.items():
        mask = decode_mask(box.mask, *SIZE[::-1])
        assert (mask == expected[frame]).mean() > 0.999 and box.xyxy == mask_box(mask) and 0.9 < box.score <= 1
    assert all(not mask.any() for frame, mask in expected.items() if frame not in found)


def test_video_segmenter_backwards_follows_the_reversed_video(monkeypatch):
    monkeypatch.setattr("llava_st_hf.refinement.segmenters.REVERSED_BYTES", 3 * 96 * 48 * 2)  # blocks of two frames
    frames, prompt = noise(7), Box(10, 10, 40, 40, frame=6)
    segmenter = VideoSegmenter(*tiny_sam2(), min_agreement=0)
    backwards = segmenter.locate(target(frames, range(7), {6: prompt}))
    forwards = segmenter.locate(target(frames[::-1], range(7), {0: replace(prompt, frame=0)}))
    assert len(backwards) > 3 and {6 - frame: box.mask for frame, box in backwards.items()} == {f: box.mask for f, box in forwards.items()}


def test_video_segmenter_keeps_no_more_than_the_memory_of_the_model(monkeypatch):
    model, processor = tiny_sam2()
    sessions, init = [], processor.init_video_session
    monkeypatch.setattr(processor, "init_video_session", lambda **options: sessions.append(init(**options)) or sessions[-1])
    VideoSegmenter(model, processor).locate(target(noise(12), range(12), {0: Box(10, 10, 40, 40, frame=0)}))
    (session,) = sessions
    kept = session.output_dict_per_obj[0]
    assert (
        not any(map(len, session.processed_frames.values()))
        and list(kept["cond_frame_outputs"]) == [0]
        and len(kept["non_cond_frame_outputs"]) <= 4
    )


def test_video_segmenter_loses_what_is_invisible_or_elsewhere(monkeypatch):
    model, processor = tiny_sam2()
    prompts = {0: Box(10, 10, 40, 40, frame=0), 1: Box(0, 0, 1, 1, frame=1, interpolated=True)}
    assert 1 not in VideoSegmenter(model, processor, min_agreement=0.5).locate(target(noise(2), range(2), prompts))
    bias = model.mask_decoder.pred_obj_score_head.proj_out.bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, -5.0))
    assert VideoSegmenter(model, processor, min_agreement=0).locate(target(noise(3), range(3), prompts)) == {}


def test_video_segmenter_without_a_box_notes_it():
    nowhere = target(noise(2), range(2), {})
    assert load(tiny_sam2()).locate(nowhere) == {} and "no box to start from" in nowhere.notes[0]


def test_video_segmenter_is_prompted_in_pixels_in_each_part_of_the_answer(monkeypatch):
    model, processor = tiny_sam2()
    given, add = [], processor.add_inputs_to_inference_session
    monkeypatch.setattr(processor, "add_inputs_to_inference_session", lambda **inputs: given.append(inputs) or add(**inputs))
    answer = {**boxes_at(0, 8, score=0.5), **boxes_at(4, score=0.9), **boxes_at(*range(1, 4), interpolated=True)}
    VideoSegmenter(model, processor, prompts=3).locate(target(noise(9), range(9), answer))
    assert [(entry["frame_idx"], entry["input_boxes"][0][0][0], entry["original_size"]) for entry in given] == [
        (0, 8.0, (48, 96)), (4, 16.0, (48, 96)), (0, 8.0, (48, 96)), (4, 0.0, (48, 96)),
    ]  # fmt: skip


def test_choose_prompts_prefers_scores_then_the_middle():
    assert choose_prompts(boxes_at(2, 4, 6), 1)[0] == 4
    scored = {**boxes_at(2, 4, score=0.3), **boxes_at(6, score=0.8)}
    assert choose_prompts(scored, 1) == (6, boxes_at(6, score=0.8))
    assert list(choose_prompts(boxes_at(*range(9)), 3)[1]) == [1, 4, 7]
    assert choose_prompts({}, 1) == (None, {}) and choose_prompts({3: Box(5, 5, 5, 9, frame=3)}, 2) == (None, {})


def test_read_reversed_yields_descending_frames():
    frames = noise(5)
    assert np.array_equal(list(read_reversed(target(frames, range(5), {}), [4, 3, 2, 1])), frames[4:0:-1])


def test_text_segmenter_boxes_are_those_of_its_masks_and_do_not_depend_on_deleted_features(monkeypatch):
    segmenter = load(tiny_sam3(), linking=Linking(min_agreement=0))
    found = segmenter.locate(target(noise(7), range(7), {0: Box(10, 10, 40, 40, frame=0)}))
    assert isinstance(segmenter, TextSegmenter) and set(found) == set(range(7))
    assert all(box.xyxy == mask_box(decode_mask(box.mask, 48, 96)) and 0 < box.score < 1 for box in found.values())
    monkeypatch.setattr("llava_st_hf.refinement.segmenters.forget", lambda *_: None)
    assert segmenter.locate(target(noise(7), range(7), {0: Box(10, 10, 40, 40, frame=0)})) == found


# Loading


@pytest.mark.parametrize(("make", "kind"), [(lambda: tiny_detector("owlv2"), ObjectDetector), (tiny_sam2, VideoSegmenter)])
def test_load_of_a_folder_is_the_refiner_of_its_model(make, kind, tmp_path):
    for part in make():
        part.save_pretrained(tmp_path)
    refiner = load(str(tmp_path))
    assert type(refiner) is kind and type(refiner.model) is type(make()[0]) and type(refiner.processor) is type(make()[1])


@pytest.mark.parametrize("value", [3, WhiteSquares, (1, 2, 3), object()])
def test_load_of_anything_else_names_it(value):
    with pytest.raises(ValueError, match="refine must be the name of a checkpoint"):
        load(value)


def test_load_of_a_model_of_another_kind_names_it(model):
    with pytest.raises(ValueError, match="'llava_st'; refine takes grounding-dino"):
        load((model, None))


@pytest.mark.parametrize("options", [{"threshold": 1.0}, {"text": " "}, {"batch_size": 0}])
def test_load_names_an_option_that_is_not_valid(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        load(tiny_detector("owlv2"), **options)


# Answers


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Writes 30 frames of `square_frames` at 10 frames per second."""
    return str(write_video(tmp_path_factory.mktemp("media") / "squares.mp4", square_frames(30), fps=10))


def answer(start: float, end: float, boxes: tuple[Box, ...] = (), **media) -> Grounding:
    info = MediaInfo("video", *SIZE, fps=10, last_frame=29, total_num_frames=30, duration=3.0, **media)
    return Grounding("…", (Event("a square", start, end, boxes),), info, ("A note.",))


def timed(frame: int, shift: float = 0.0) -> Box:
    (box,) = boxes_at(frame, time=frame / 10, score=0.4, bins=(1, 2, 3, 4, 5)).values()
    return replace(box, xmin=box.xmin + shift, xmax=box.xmax + shift)


def test_refine_answer_has_the_box_of_every_frame_of_the_span(video):
    refiner = WhiteSquares()
    refined = refine_answer(answer(0.5, 1.2, (timed(5, 3), timed(10, -4))), video, refiner)
    (event,) = refined.events
    assert [(box.frame, box.time) for box in event.boxes] == [(frame, frame / 10) for frame in range(5, 13)]
    assert all(np.abs(np.subtract(box.xyxy, boxes_at(box.frame)[box.frame].xyxy)).max() <= 1 for box in event.boxes)
    assert all(box.score == 0.9 and box.mask and box.bins is None and not box.interpolated for box in event.boxes)
    assert (event.start, event.end, event.caption, refined.notes) == (0.5, 1.2, "a square", ("A note.",))
    (looked_for,) = refiner.targets
    assert looked_for.text == "a square" and looked_for.answer_boxes[5] == timed(5, 3) and looked_for.answer_boxes[7].interpolated
    assert Grounding.from_dict(refined.to_dict()) == refined


def test_refine_answer_of_frames_without_a_detection_has_the_box_of_the_answer(video):
    given = answer(0.5, 1.0, (timed(5, 3), timed(10, 3)))
    refined = refine_answer(given, video, WhiteSquares(missed=(5, 7)))
    boxes = {box.frame: box for box in refined.events[0].boxes}
    assert boxes[5].xyxy == timed(5, 3).xyxy and not boxes[5].interpolated and boxes[5].score is None
    assert boxes[7].xyxy == given.box_at_frame(given.events[0], 7).xyxy and boxes[7].interpolated and boxes[7].mask is None
    assert refined.notes[1:] == ("The object was not located in 2 of 6 frames, which have the boxes of the answer.",)


def test_refine_answer_without_boxes_interpolates_between_detections(video):
    refined = refine_answer(answer(0.5, 1.0), video, WhiteSquares(missed=(5, 7)))
    boxes = {box.frame: box for box in refined.events[0].boxes}
    assert list(boxes) == list(range(5, 11)) and [frame for frame, box in boxes.items() if box.interpolated] == [5, 7]
    assert boxes[7].xmin == pytest.approx((boxes[6].xmin + boxes[8].xmin) / 2) and boxes[5].xyxy == boxes[6].xyxy
    assert refined.notes[1:] == ("The object was not located in 2 of 6 frames, which have interpolated boxes.",)


def test_refine_answer_that_is_not_found_keeps_the_event(video):
    refined = refine_answer(answer(0.5, 1.0), video, WhiteSquares(missed=range(30)))
    assert refined.events == answer(0.5, 1.0).events and "6 of 6 frames, which have no boxes" in refined.notes[1]


def test_refine_answer_of_several_events_numbers_the_notes(video):
    given = answer(0.5, 0.5)
    given = replace(given, events=(given.events[0], Event("a circle", 1.0, 1.0), Event("no span")))
    refined = refine_answer(given.to_dict(), video, WhiteSquares(missed=[10]))
    assert [len(event["boxes"]) for event in refined["events"]] == [1, 0, 0]
    assert [note[:8] for note in refined["notes"][1:]] == ["Event 2:", "Event 3:"]


def test_refine_answer_of_a_variable_rate_has_the_frames_of_its_times(tmp_path):
    times = [0.0, 0.1, 0.3, 0.7, 0.8, 1.5]
    path = str(write_timed_video(tmp_path / "video.mkv", times))
    media = MediaInfo("video", 64, 48, fps=4.0, last_frame=5, total_num_frames=6, frame_times=tuple(times))
    refiner = WhiteSquares()
    refine_answer(Grounding("", (Event(None, 0.3, 0.8),), media, query="x"), path, refiner)
    assert refiner.targets[0].frames == range(2, 5)


def test_refine_answer_with_frames_in_memory_reads_them():
    frames = square_frames(30)
    for medium in (frames, list(frames), frames.astype(np.float32) / 255, torch.from_numpy(frames).permute(0, 3, 1, 2)):
        refined = refine_answer(answer(0.5, 0.7), medium, WhiteSquares())
        assert [box.xyxy for box in refined.events[0].boxes] == [box.xyxy for box in boxes_at(5, 6, 7).values()]


@pytest.mark.parametrize("frames", [square_frames(29), square_frames(30, height=50)])
def test_refine_answer_of_another_video_names_the_difference(frames):
    with pytest.raises(ValueError, match=r"Refinement needs the video that the answer is about.*; got"):
        refine_answer(answer(0.5, 0.7), frames, WhiteSquares())


def test_refine_answer_without_media_raises():
    with pytest.raises(ValueError, match="media"):
        refine_answer({"text": "", "events": [], "notes": []}, "x.mp4", WhiteSquares())


def test_refine_answer_of_an_image_refines_each_box(tmp_path):
    path = str(tmp_path / "image.png")
    Image.fromarray(square_frames(5)[4]).save(path)
    events = (Event("a square", boxes=(Box(5, 5, 20, 20), Box(0, 0, 9, 9))), Event("nothing"))
    given = Grounding("", events, MediaInfo("image", *SIZE))
    for medium in (path, Image.open(path), square_frames(5)[4]):
        refined = refine_answer(given, medium, WhiteSquares())
        assert [box.xyxy for event in refined.events for box in event.boxes] == [(8, 16, 24, 32)] * 3
        assert all(box.frame is None and box.time is None and box.score == 0.9 for box in refined.events[0].boxes)
    refined = refine_answer(given, path, WhiteSquares(missed=[0]))
    assert [len(event.boxes) for event in refined.events] == [2, 0] and refined.events[0].boxes[0].xyxy == (5, 5, 20, 20)
    assert refined.notes[0] == "Event 1: a square was not located in the image: it has the box of the answer."


def test_refine_answer_turns_a_pil_image_upright(tmp_path):
    image = Image.fromarray(np.rot90(square_frames(5)[4]))
    exif = image.getexif()
    exif[0x0112] = 6  # to be displayed rotated by 90 degrees clockwise
    image.save(tmp_path / "image.jpg", exif=exif, quality=95)
    given = Grounding("", (Event("a square"),), MediaInfo("image", *SIZE))
    for medium in (tmp_path / "image.jpg", Image.open(tmp_path / "image.jpg")):
        (box,) = refine_answer(given, medium, WhiteSquares()).events[0].boxes
        assert np.abs(np.subtract(box.xyxy, (8, 16, 24, 32))).max() <= 1


def test_refine_answer_without_events_reads_nothing():
    empty = {"text": "No.", "events": [], "notes": [], "media": MediaInfo("video", *SIZE).to_dict()}
    assert refine_answer(empty, "missing.mp4", WhiteSquares()) == empty


def test_refine_answer_with_boxes_outside_the_target_raises(video):
    class Wrong:
        def locate(self, target):
            return boxes_at(29)

    with pytest.raises(ValueError, match=r"Wrong.locate must return boxes in frames of the target; got frames \[29\]"):
        refine_answer(answer(0.5, 0.7), video, Wrong())
