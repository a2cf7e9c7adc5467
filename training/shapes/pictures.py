# SPDX-License-Identifier: Apache-2.0
"""
Draws the images of docs/shapes.md: scenes of the Shapes dataset with their ground truth, and the training losses.

    pip install 'llava-st-hf[pictures]'
    python training/shapes/pictures.py runs/shapes docs/images
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from PIL import Image
from train import STAGES
from vision_pretraining import ATTRIBUTES

from llava_st_hf.shapes.questions import happening
from llava_st_hf.shapes.scenes import Painter, make_scene, scene_seed
from llava_st_hf.visualization import TRUTH_COLOUR, add_caption, draw_boxes, draw_timeline, one_above_another, side_by_side


SCENES = (1, 2, 3)
FRAMES, SIDE = 6, 150  # frames of a scene, and the width of each in pixels
COLUMNS = 4  # of plots


def draw_scene(number: int) -> Image.Image:
    """Draws frames of a video of the validation split with the boxes of the current events, above a timeline of all events."""
    scene = make_scene(scene_seed("validation", number), is_video=True)
    painter = Painter(scene)
    frames = [painter.frame(index) for index in range(scene.num_frames)]
    drawn = []
    for index in np.linspace(0, scene.num_frames - 1, FRAMES).round().astype(int):
        time = index / scene.fps
        image = Image.fromarray(frames[index]).resize((SIDE, SIDE * scene.height // scene.width), Image.Resampling.BICUBIC)
        zoom = SIDE / scene.width
        boxes = [scene.box(event.thing, time) for event in scene.events if event.start <= time <= event.end]
        drawn.append(
            add_caption(draw_boxes(image, [([v * zoom for v in box], TRUTH_COLOUR, None) for box in boxes if box]), f"{time:.1f} s")
        )
    strip = side_by_side(drawn)
    spans = [((event.start / scene.duration, event.end / scene.duration), TRUTH_COLOUR, happening(scene, event)) for event in scene.events]
    return one_above_another([strip, draw_timeline(strip.width, spans)])


def draw_curves(runs: Path, path: Path) -> None:
    """Plots the losses of the vision encoder, and of each task in each part of the three stages, to an image file."""
    rows = -(-(1 + len(STAGES)) // COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(5 * COLUMNS, 3.6 * rows), constrained_layout=True)
    axes, unused = np.split(grid.flatten(), [1 + len(STAGES)])
    for axis in unused:
        axis.remove()
    vision = json.loads((runs / "start/vision_log.json").read_text())
    axes[0].plot([entry["step"] for entry in vision], [entry["loss"] for entry in vision], label="loss")
    for name in ATTRIBUTES:
        axes[0].plot([entry["step"] for entry in vision], [entry[name] for entry in vision], label=f"{name} accuracy")
    axes[0].set(title="vision encoder", xlabel="step")
    for stage, axis in zip(STAGES, axes[1:], strict=True):
        log = json.loads((runs / stage / "trainer_state.json").read_text())["log_history"]
        names = sorted({name for entry in log for name in entry if name.startswith("loss_")})
        axis.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)  # there are more than ten tasks
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            axis.plot(*zip(*points, strict=True), label=name.removeprefix("loss_"), linewidth=1)
        axis.set(title=f"{stage}: loss by task", xlabel="step", yscale="log")
    for axis in axes:
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("runs", type=Path, help="folder of training/shapes/train.py")
    parser.add_argument("output", type=Path, help="folder for the images")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    one_above_another([draw_scene(number) for number in SCENES], gap=14).save(arguments.output / "shapes_world.jpg", quality=88)
    draw_curves(arguments.runs, arguments.output / "shapes_curves.png")
