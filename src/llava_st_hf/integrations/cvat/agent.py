# SPDX-License-Identifier: Apache-2.0
"""Agent that adds tracks to the video tasks of a CVAT server, through its REST API (https://docs.cvat.ai/docs/api_sdk/sdk/).

CVAT's own functions return no tracks: a detection function (Nuclio, or `cvat-cli function run-agent`) gets single frames and returns
shapes, a tracking function continues a shape that the user drew from frame to frame. Grounding needs the whole video and a text. The
agent therefore downloads the frames that the model samples, asks for each label of the task, and uploads the tracks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cvat_sdk import Client, make_client, models
from cvat_sdk.core.exceptions import CvatSdkException
from cvat_sdk.core.proxies.annotations import AnnotationUpdateAction
from cvat_sdk.core.proxies.tasks import Task
from cvat_sdk.exceptions import ApiException
from transformers.utils import logging

from ...exports.tracks import Track, read_tracks
from ...model.image_files_llava_st import load_image
from ...model.media_info_llava_st import MediaInfo
from ...model.results_llava_st import Box, Event, Grounding
from ...model.video_sampling_llava_st import sample_frame_indices


logger = logging.get_logger(__name__)
#: Name of the text attribute of a label whose default value is asked instead of the label's name.
QUESTION_ATTRIBUTE = "question"
# Types of labels whose objects may be rectangles.
_RECTANGLE_TYPES = ("any", "rectangle")


@dataclass(frozen=True)
class Question:
    """A label of a task, and the text that is asked about it."""

    label_id: int
    name: str
    text: str


def annotate_task(grounder, task: Task, **arguments) -> list[str]:
    """
    Adds tracks to a video task: one for each event found for each label that no object of the task has.

    Args:
        grounder: `pipeline("video-grounding")`.
        task: of `cvat_sdk`.
        arguments: of the call of the pipeline.

    Returns:
        Notes about labels and events that were left out.

    Raises:
        ValueError: for a task of images.
    """
    if task.mode != "interpolation":
        raise ValueError(f"Task {task.id} ({task.name}) has images, not a video (mode {task.mode!r}): it cannot get tracks.")
    notes: list[str] = []
    asked = _questions(task, notes)
    meta = task.get_meta()
    deleted = set(meta.deleted_frames)
    frames = [frame for frame in range(meta.size) if frame not in deleted]
    if not asked or not frames:
        return notes + ([] if frames else [f"Task {task.id} has no frames."])
    count = grounder.processor.video_processor.num_frames
    sampled = list(dict.fromkeys(frames[index] for index in sample_frame_indices(0, len(frames) - 1, count)))
    images = [load_image(task.get_frame(frame, quality="original")).convert("RGB") for frame in sampled]
    # CVAT does not state the frame rate: one second of the answer is one frame of the task.
    medium = {"video": images, "timestamps": [float(frame) for frame in sampled]}
    answers = grounder(medium, text=[question.text for question in asked], task="stvg", **arguments)
    tracks = []
    for question, answer in zip(asked, answers, strict=True):
        found = _in_task_frames(Grounding.from_dict(answer), sampled, meta.size)
        notes += found.notes
        for track in read_tracks([found]):
            boxes = track.key_boxes(notes)
            if not boxes:
                notes.append(f"{track.name} of the label {question.name!r} has no boxes and was left out.")
                continue
            tracks.append(_track(question.label_id, boxes, track, deleted))
        if not found.events:
            notes.append(f"Nothing was found for the label {question.name!r}.")
    if tracks:
        task.update_annotations(models.PatchedLabeledDataRequest(tracks=tracks), action=AnnotationUpdateAction.CREATE)
    logger.info("Task %s: %d tracks for %d labels.", task.id, len(tracks), len(asked))
    return notes


def _questions(task: Task, notes: list[str]) -> list[Question]:
    annotations = task.get_annotations()
    used = {item.label_id for items in (annotations.tracks, annotations.shapes, annotations.tags) for item in items}
    questions = []
    for label in task.get_labels():
        if str(label.type) not in _RECTANGLE_TYPES:
            notes.append(f"The label {label.name!r} was not asked: its type is {label.type!s}, not rectangle or any.")
        elif label.id in used:
            notes.append(f"The label {label.name!r} was not asked: task {task.id} has annotations with it.")
        else:
            defaults = [attribute.default_value for attribute in label.attributes if attribute.name == QUESTION_ATTRIBUTE]
            questions.append(Question(label.id, label.name, (defaults[0] if defaults else "").strip() or label.name))
    return questions


def _in_task_frames(grounding: Grounding, sampled: Sequence[int], size: int) -> Grounding:
    """An answer whose seconds are frames of the task, which has `size` frames, with each box at the nearest sampled frame."""

    def moved(event: Event) -> Event:
        boxes = [(_nearest(sampled, box.time), box) for box in event.boxes if box.time is not None]
        return replace(event, boxes=tuple(replace(box, frame=frame, time=float(frame)) for frame, box in boxes))

    assert grounding.media is not None
    media = MediaInfo("video", grounding.media.width, grounding.media.height, fps=1.0, last_frame=size - 1, total_num_frames=size)
    return replace(grounding, media=media, events=tuple(map(moved, grounding.events)))


def _nearest(frames: Sequence[int], position: float) -> int:
    return min(frames, key=lambda frame: abs(frame - position))


def _track(label_id: int, boxes: dict[int, Box], track: Track, deleted: set[int]) -> models.LabeledTrackRequest:
    last = max(boxes)
    shapes = [_shape(frame, box, outside=False) for frame, box in boxes.items()]
    end = next((frame for frame in range(last + 1, track.media.last_frame + 1) if frame not in deleted), None)
    if end is not None:
        shapes.append(_shape(end, boxes[last], outside=True))
    return models.LabeledTrackRequest(label_id=label_id, frame=min(boxes), group=0, source="auto", attributes=[], shapes=shapes)


def _shape(frame: int, box: Box, outside: bool) -> models.TrackedShapeRequest:
    points = [round(value, 2) for value in box.xyxy]
    type = models.ShapeType("rectangle")
    return models.TrackedShapeRequest(type=type, frame=frame, points=points, outside=outside, occluded=False, attributes=[])


def annotate(grounder, client: Client, tasks: Sequence[int], project: int | None, watch: float | None, **arguments) -> bool:
    """
    Annotates tasks of a server, each once.

    Args:
        grounder: `pipeline("video-grounding")`.
        client: of `cvat_sdk`, logged in.
        tasks: ids of tasks.
        project: id of a project, all of whose tasks are annotated; None for none.
        watch: seconds between looks at the project for new tasks; None to end after one.
        arguments: of the calls of the pipeline.

    Returns:
        Whether all tasks could be annotated. Errors of a task are logged, and the others are annotated.
    """
    done: set[int] = set()
    succeeded = True
    while True:
        waiting = [*tasks, *(_tasks_of(client, project) if project is not None else ())]
        for id in dict.fromkeys(task for task in waiting if task not in done):
            done.add(id)
            try:
                for note in annotate_task(grounder, client.tasks.retrieve(id), **arguments):
                    logger.warning("Task %s: %s", id, note)
            except (ValueError, OSError, ApiException, CvatSdkException) as error:
                succeeded = False
                logger.error("Task %s was not annotated: %s", id, _sentence(error))
        if watch is None:
            return succeeded
        time.sleep(watch)


def _tasks_of(client: Client, project: int) -> list[int]:
    try:
        return [task.id for task in client.projects.retrieve(project).get_tasks() if task.size]
    except ApiException as error:
        raise OSError(f"Project {project} cannot be read: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"the server answered {error.status} {error.reason}"
    return str(error)


def run(
    model: str | None,
    server: str,
    tasks: Sequence[int] = (),
    project: int | None = None,
    watch: float | None = None,
    token: str | None = None,
    device: str | int | None = None,
    dtype: str = "auto",
) -> bool:
    """
    Loads a model and annotates tasks of a CVAT server.

    Args:
        model: checkpoint; None for the demo model.
        server: URL of CVAT.
        tasks, project, watch: see `annotate`.
        token: personal access token of a CVAT user.
        device, dtype: of the model.

    Returns:
        Whether all tasks could be annotated.

    Raises:
        OSError: if the server cannot be reached or does not accept the token, before the model is loaded.
    """
    from transformers import pipeline

    try:
        client = make_client(server, access_token=token)
        if token is not None:
            client.users.retrieve_current_user()
    except (ApiException, CvatSdkException, OSError) as error:
        raise OSError(f"cannot log in to {server}: {_sentence(error)}") from error
    with client:
        return annotate(pipeline("video-grounding", model=model, device=device, dtype=dtype), client, tasks, project, watch)
