# SPDX-License-Identifier: Apache-2.0
"""
Encodes all combinations of codecs, containers and kinds, reads each file with the public video processor and prints a table.

    python -m modeling_tests.video_matrix FOLDER [--backend pyav] [--only TEXT]

The exit status is 1 if any file was read incorrectly, crashed its process, or raised an unexpected exception.
"""

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path

from modeling_tests.child_processes import call_each
from modeling_tests.numbered_videos import CODECS, CONTAINERS, KINDS, NotEncodable, NumberedVideo, write_numbered
from modeling_tests.odd_videos import ODD_VIDEOS, write_odd
from modeling_tests.video_verdicts import Verdict, is_right, judge


SECONDS_PER_FILE = 60.0


def cell(videos: list[NumberedVideo], verdicts: dict) -> str:
    """Table cell of one codec in one container: the number of kinds read correctly, and the outcomes of the others."""
    if not videos:
        return ""
    right = sum(verdicts[video.path].outcome == "right" for video in videos if isinstance(verdicts[video.path], Verdict))
    refused = sum(verdicts[video.path].outcome == "refused" for video in videos if isinstance(verdicts[video.path], Verdict))
    wrong = len(videos) - right - refused
    return f"{right}" + (f", {refused} refused" if refused else "") + (f", **{wrong} WRONG**" if wrong else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folder", type=Path, help="for the encoded files")
    parser.add_argument("--backend", help="`video_backend` of the processor; by default its own default")
    parser.add_argument("--only", default="", help="only files whose name has this text")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)

    cells: dict[tuple[str, str], list[NumberedVideo]] = {}
    odd: dict[str, NumberedVideo] = {}
    left_out: dict[tuple[str, str], dict[str, list[str]]] = {}  # by container and reason: kinds of each codec
    for codec, container, kind in product(CODECS, CONTAINERS, KINDS):
        try:
            video = write_numbered(arguments.folder, container, codec, kind)
        except NotEncodable as error:
            left_out.setdefault((container, str(error)), {}).setdefault(codec, []).append(kind)
            continue
        if arguments.only in video.path.name:
            cells.setdefault((codec, container), []).append(video)
    for name in ODD_VIDEOS:
        video = write_odd(arguments.folder, name)
        if arguments.only in video.path.name:
            odd[name] = video

    videos = [*(video for group in cells.values() for video in group), *odd.values()]
    judged = call_each(partial(judge, backend=arguments.backend), videos, SECONDS_PER_FILE)
    verdicts = {video.path: verdict for video, verdict in judged}

    print("Files read right, of the kinds that could be encoded:\n")
    columns = [container for container in CONTAINERS if any((codec, container) in cells for codec in CODECS)]
    print("| codec | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for codec in CODECS:
        row = [cell(cells.get((codec, container), []), verdicts) for container in columns]
        print(f"| {codec} | " + " | ".join(row) + " |")
    print("\n| further kinds | right is | verdict |\n|---|---|---|")
    for name, video in odd.items():
        print(f"| {name} | {video.right} | {'' if is_right(video, verdicts[video.path]) else '**WRONG** '}{words(verdicts[video.path])} |")

    bad = [video for video in videos if not is_right(video, verdicts[video.path])]
    print(f"\n{len(videos)} files: {len(videos) - len(bad)} as they should be, {len(bad)} not:\n")
    for video in bad:
        print(f"- {video.path.name}: {words(verdicts[video.path])}")
    print("\nNot encodable with PyAV:\n")
    for (container, reason), codecs in sorted(left_out.items()):
        names = [codec if len(kinds) == len(KINDS) else f"{codec} ({', '.join(kinds)})" for codec, kinds in codecs.items()]
        print(f"- {container}, {reason}: {'; '.join(names)}")
    return int(any(not isinstance(verdict, Verdict) or verdict.outcome in ("wrong", "exception") for verdict in verdicts.values()))


def words(verdict) -> str:
    if not isinstance(verdict, Verdict):
        return str(verdict)
    return verdict.outcome + (f": {verdict.detail}" if verdict.detail else "")


if __name__ == "__main__":
    sys.exit(main())
