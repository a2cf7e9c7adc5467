# SPDX-License-Identifier: Apache-2.0
"""Questions about a video that are asked for several windows of it: `window`, `overlap` and `all` of the pipeline.

The file is opened once. The frames of all windows are decoded in one pass, and the windows are answered in batches, so that the memory
depends on the size of a batch and not on the length of the video.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .media_items_llava_st import prepare_video
from .presence_llava_st import check_presence_calibration
from .questions_llava_st import QUESTION_KEYS, READING_KEYS, PreparedQuestion, is_chat, medium_item, question_messages
from .video_frames_llava_st import flatten_videos
from .video_sampling_llava_st import check_num_frames
from .window_run_llava_st import WindowOptions, WindowRun


if TYPE_CHECKING:  # not executed: the pipeline imports this file
    from .pipeline_llava_st import VideoGroundingPipeline

#: Tasks whose answer is the span of a described event: those that can be asked for several windows.
WINDOW_TASKS = ("tvg", "stvg")
WINDOW_KEYS = ("window", "overlap", "all")  # arguments of the pipeline


class WindowedQuestions:
    """
    Questions about one video, each asked for several windows of it.

    Args:
        pipeline: [`VideoGroundingPipeline`].
        questions: inputs of the pipeline about the same video, one for each question.
        kwargs: further arguments of the call.
        options: the windows.

    Raises:
        ValueError: naming what is wrong with a question or an argument, before the video is opened.
    """

    def __init__(self, pipeline: "VideoGroundingPipeline", questions: Sequence, kwargs: dict, options: WindowOptions):
        own = (pipeline._preprocess_params, pipeline._forward_params, pipeline._postprocess_params)
        given = pipeline._sanitize_parameters(**kwargs)
        before, forward, after = ({**old, **new} for old, new in zip(own, given, strict=True))
        self.pipeline, self.options = pipeline, options
        self.calibration = check_presence_calibration(getattr(pipeline.model.generation_config, "presence_calibration", None))
        if before.get("processor_kwargs"):
            raise ValueError(f"processor_kwargs={before['processor_kwargs']!r:.200} do not go with window and all. Leave them out.")
        forward.setdefault("scores", True)
        if not pipeline._can_share(pipeline._prepare_generate_kwargs(forward)):
            raise ValueError(
                "window and all need the default cache, which cache_implementation, use_cache=False, a cache of your own, an assistant "
                "model or a decoder with sliding windows exclude."
            )
        # Boxes are refined in merged answers, about the whole video.
        self.refine = after.pop("refine", None)
        self.parameters = forward, after
        self.reading = {name: before[name] for name in READING_KEYS if before.get(name) is not None}
        arguments = {name: before[name] for name in QUESTION_KEYS if name in before}
        self.questions = []
        for inputs in questions:
            if isinstance(inputs, PreparedQuestion) or is_chat(getattr(inputs, "messages", inputs)):
                kind = "prepared question" if isinstance(inputs, PreparedQuestion) else "chat"
                raise ValueError(f"A {kind} is about one window. Give the video, task and text to use window and all.")
            item, question = medium_item(inputs, arguments)
            if item["type"] != "video":
                raise ValueError("window and all divide a video, but the input is an image. Leave them out.")
            if question.get("task") not in WINDOW_TASKS:
                raise ValueError(
                    f"task={question.get('task')!r} does not go with window and all: they are for questions about when an event occurs, "
                    f"of task {' and '.join(WINDOW_TASKS)}. For a known span give the clip instead (start and end)."
                )
            question_messages(inputs, arguments)  # checks text and arguments
            self.item = item
            self.questions.append(question)
        _, self.item_options = prepare_video(self.item)
        videos = flatten_videos(self.item["video"])
        if len(videos) != 1:
            raise ValueError(f"An input has one video; got {len(videos)}. Give several as a list of inputs.")
        (self.video,) = videos
        self.num_frames = self.reading.pop("num_frames", None)
        if self.num_frames is not None:
            check_num_frames(self.num_frames)

    def answers(self) -> list[dict]:
        """The answer to each question."""
        run = self.run()
        answers = [run.answer(number) for number in range(len(self.questions))]
        return answers if self.refine is None else [self.refine(answer, medium=self.item["video"], **self.reading) for answer in answers]

    def run(self) -> WindowRun:
        """Asks all questions about all windows."""
        read_opened = self.pipeline.processor.video_processor.read_opened
        return read_opened(self.video, self._run, self.item_options["video_metadata"], **self.reading)

    def _run(self, reader) -> WindowRun:
        # All state is in the object: this is called again if the index of the file turns out to be wrong.
        clip = self.item_options["clips"]
        run = WindowRun(self.pipeline, self.questions, self.options, self.calibration, self.parameters, self.num_frames, reader, clip)
        run.ask()
        return run


__all__ = ["WINDOW_KEYS", "WINDOW_TASKS", "WindowOptions", "WindowedQuestions"]
