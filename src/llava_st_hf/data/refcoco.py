# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg in the form that LLaVA-ST is scored on.

A file is `{"images": [{"file_name", "height", "width", "caption", "id"}], "annotations": [{"id", "bbox": [x, y, w, h]}]}`, boxes in
pixels. The two lists go together by position; an `id` that differs between them tells a damaged file.
"""

from collections.abc import Iterator
from itertools import zip_longest

from .checks import mapping, member, name, whole, words
from .json_rows import stream
from .samples import GroundingSample, within, xywh_to_xyxy


def read_refcoco(path: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Yields `(row, sample)`, or `(row, problem)` where a pair of image and annotation cannot be used. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read on.
    """
    pairs = zip_longest(stream(path, "images.item", "{"), stream(path, "annotations.item", "{"))
    for row, (image, annotation) in enumerate(pairs, start=1):
        try:
            if image is None or annotation is None:
                raise ValueError(f"There is no {'image' if image is None else 'annotation'} at this place: the lists differ in length.")
            yield row, _sample(mapping(image, "The image"), mapping(annotation, "The annotation"))
        except ValueError as error:
            yield row, str(error)


def _sample(image: dict, annotation: dict) -> GroundingSample:
    id = name(member(image, "id", "The image"), "The id of the image")
    other = name(member(annotation, "id", "The annotation"), "The id of the annotation")
    if id != other:
        raise ValueError(f"The image has the id {id}, the annotation beside it {other}.")
    width = whole(member(image, "width", "The image"), "The image's width", minimum=1)
    height = whole(member(image, "height", "The image"), "The image's height", minimum=1)
    box = within(xywh_to_xyxy(member(annotation, "bbox", "The annotation"), "'bbox'"), width, height, "'bbox'")
    return GroundingSample(
        id=id,
        kind="image",
        path=member(image, "file_name", "The image"),
        text=words(member(image, "caption", "The image"), "'caption'"),
        boxes=((None, box),),
        width=width,
        height=height,
    )
