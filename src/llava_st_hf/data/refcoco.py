# SPDX-License-Identifier: Apache-2.0
"""RefCOCO, RefCOCO+ and RefCOCOg annotations, in the form that LLaVA-ST is scored on.

A file is `{"images": [{"file_name", "height", "width", "caption", "id"}], "annotations": [{"id", "bbox": [x, y, w, h]}]}` with boxes
in pixels. Entries of the two lists belong together by position; an `id` that differs between them is an error.
"""

from collections.abc import Iterator
from itertools import zip_longest

from .json_rows import stream
from .samples import GroundingSample, XywhBox, clip_box
from .schemas import Count, Id, Schema, Text, validate


class _Image(Schema):
    id: Id
    file_name: Text
    caption: Text
    width: Count
    height: Count


class _Annotation(Schema):
    id: Id
    bbox: XywhBox


def read_refcoco(path: str) -> Iterator[tuple[int, GroundingSample | str]]:
    """
    Yields `(row, sample)`, or `(row, problem)` for a pair of image and annotation that cannot be used. Rows count from 1.

    Raises:
        BrokenFileError, OSError: naming the file, where it cannot be read any further.
    """
    pairs = zip_longest(stream(path, "images.item", "{"), stream(path, "annotations.item", "{"))
    for row, (image, annotation) in enumerate(pairs, start=1):
        try:
            if image is None or annotation is None:
                missing, other = ("images", "annotations") if image is None else ("annotations", "images")
                raise ValueError(f"'{missing}' has no item at this position, and '{other}' has: both lists must have the same length.")
            yield row, _sample(validate(_Image, image, "The image"), validate(_Annotation, annotation, "The annotation"))
        except ValueError as error:
            yield row, str(error)


def _sample(image: _Image, annotation: _Annotation) -> GroundingSample:
    if image.id != annotation.id:
        raise ValueError(f"The image has the id {image.id}, the annotation at the same position the id {annotation.id}.")
    return GroundingSample(
        id=image.id,
        kind="image",
        path=image.file_name,
        text=image.caption,
        boxes=((None, clip_box(annotation.bbox, image.width, image.height, "'bbox'")),),
        width=image.width,
        height=image.height,
    )
