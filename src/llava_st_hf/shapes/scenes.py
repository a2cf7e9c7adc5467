# SPDX-License-Identifier: Apache-2.0
"""Scenes of the synthetic Shapes dataset: coloured shapes on textured backgrounds with events, and the exact ground truth of both.

A scene is a function of its seed: its objects (shape × colour × size), the events (`KINDS`), the motion of the camera, and the drawing.
`shapes.questions` writes questions of the eight tasks about it, `shapes.files` videos, images and annotation files.
"""

from dataclasses import dataclass, replace

import numpy as np


SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (214, 40, 40), "green": (40, 176, 70), "blue": (44, 84, 224), "yellow": (240, 208, 48), "white": (240, 240, 240)}
# Side of an object as a fraction of the shorter side of the image. The gap between the two ranges makes the words unambiguous.
SIZES = {"small": (0.18, 0.23), "large": (0.32, 0.40)}
# Kinds of events → weight with which they are drawn; "grows" and "hits" are often rejected. "turns" is followed by a colour, "hits" by
# another object.
KINDS = {
    "moves left": 1.0,
    "moves right": 1.0,
    "moves up": 1.0,
    "moves down": 1.0,
    "grows": 1.6,
    "shakes": 1.2,
    "appears": 1.2,
    "disappears": 0.7,
    "turns": 1.2,
    "hits": 3.0,
}
_DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
_GROWTH = 1.75  # side of an object after it has grown, relative to before
# Every frame contains rendered motion cues, because the encoder sees single frames. They are copies of an object:
# behind one that moves: distance as a fraction of its whole movement, and opacity, from the furthest on;
_TAIL = ((0.3, 0.25), (0.2, 0.4), (0.1, 0.55))
_SHAKE_TAIL = 0.45  # on both sides of one that shakes: opacity;
_SWELLING = ((1.6, 0.3), (1.3, 0.5))  # around one that grows: relative size and opacity;
_HIT_TAIL = 0.4  # behind one that is about to hit another: relative size;
_RIM = 1.3  # around one that appears (dark) and one that is about to be hit (in the colour of the other): relative size;
_CORE = 0.5  # inside one that has turned to another colour, in its own colour: relative size.
_DARK = (12, 12, 12)
_SPLITS = {"train": 0, "validation": 1, "test": 2}
_TRIES = 60


@dataclass(frozen=True)
class Thing:
    """An object before any event. `x`, `y`: its centre, `side`: its width and height, in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Event:
    """
    An event of one object.

    Args:
        thing: index of the object in the scene.
        kind: one of `KINDS`.
        start, end: seconds.
        dx, dy: displacement of a movement, or amplitude of a shake, in pixels.
        colour: of the object during "turns".
        other: index of the object that is hit.
        shake: period of a shake in seconds.
    """

    thing: int
    kind: str
    start: float
    end: float
    dx: float = 0.0
    dy: float = 0.0
    colour: str | None = None
    other: int | None = None
    shake: float = 0.5


@dataclass(frozen=True)
class State:
    """
    State of an object at one time.

    Args:
        x, y, side: in pixels, as of `Thing`, with the motion of the camera.
        colour: current colour.
        visible: whether it is visible.
        deed: kind of its current event, one of `KINDS`, or "is hit" while another object moves to hit it, or "".
        tail: `(x, y, opacity)` of faded copies, drawn before the object: behind a moving one, on both sides of a shaking one.
        moves: `(x, y)`, unit vector of the direction of a movement; (0, 0) without one.
        hit_by: index of the object that moves to hit it.
    """

    x: float
    y: float
    side: float
    colour: str
    visible: bool
    deed: str = ""
    tail: tuple[tuple[float, float, float], ...] = ()
    moves: tuple[float, float] = (0.0, 0.0)
    hit_by: int | None = None

    @property
    def box(self) -> tuple[float, float, float, float]:
        half = self.side / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class Scene:
    """
    An image (one frame) or a video.

    Args:
        width, height: pixels, even numbers.
        fps: frames per second.
        num_frames: 1 for an image.
        things: objects from the furthest to the nearest: a later one occludes an earlier one.
        events: in order of their start.
        drift: `(x, y)` pixels by which everything has moved at the end, due to the motion of the camera.
        seed: of the background, noise and shades of colours.
    """

    width: int
    height: int
    fps: int
    num_frames: int
    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    drift: tuple[float, float]
    seed: int

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.num_frames - 1) / self.fps

    def offset(self, time: float) -> tuple[float, float]:
        """`(x, y)` pixels by which everything has moved at `time` (seconds), due to the motion of the camera."""
        share = time / self.duration if self.num_frames > 1 else 0.0
        return self.drift[0] * share, self.drift[1] * share

    def state(self, number: int, time: float) -> State:
        """State of object `number` at `time` (seconds)."""
        thing = self.things[number]
        x, y = (start + moved for start, moved in zip((thing.x, thing.y), self.offset(time), strict=True))
        side, colour, visible, deed, tail, moves, hit_by = thing.side, thing.colour, True, "", [], (0.0, 0.0), None
        for event in self.events:
            share = float(np.clip((time - event.start) / (event.end - event.start), 0, 1))
            now = event.start <= time <= event.end
            if event.other == number and now:
                deed, hit_by = "is hit", event.thing
            if event.thing != number:
                continue
            deed = event.kind if now else deed
            if event.kind == "shakes":
                if now:
                    tail = [(x - event.dx, y - event.dy, _SHAKE_TAIL), (x + event.dx, y + event.dy, _SHAKE_TAIL)]
                    swing = float(np.sin(2 * np.pi * (time - event.start) / event.shake))
                    x, y = x + event.dx * swing, y + event.dy * swing
            elif event.kind == "grows":
                side *= 1 + share * (_GROWTH - 1)
            elif event.kind == "turns":
                colour = event.colour if now and event.colour else colour
            elif event.kind in ("appears", "disappears"):
                visible = now == (event.kind == "appears")
            else:
                x, y = x + share * event.dx, y + share * event.dy
                if now:
                    way = float(np.hypot(event.dx, event.dy))
                    moves = (event.dx / way, event.dy / way)
                    tail = [(x - back * event.dx, y - back * event.dy, opacity) for back, opacity in _TAIL]
        return State(x, y, side, colour, visible, deed, tuple(tail), moves, hit_by)

    def box(self, number: int, time: float) -> tuple[float, float, float, float] | None:
        """`(x1, y1, x2, y2)` of an object in pixels, including occluded parts; None where it is not visible."""
        state = self.state(number, time)
        if not state.visible:
            return None
        x1, y1, x2, y2 = state.box
        return max(x1, 0.0), max(y1, 0.0), min(x2, float(self.width)), min(y2, float(self.height))


# ============================================================ Making a scene


def scene_seed(split: str, number: int, world: int = 0) -> int:
    """Seed of scene `number` of a split ("train", "validation" or "test"); `world` selects another, independent dataset.

    Raises:
        ValueError: for another split.
    """
    if split not in _SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(_SPLITS)}.")
    return int(np.random.SeedSequence([world, _SPLITS[split], number]).generate_state(1, np.uint64)[0])


def make_scene(seed: int, is_video: bool, easy: bool = False) -> Scene:
    """
    Makes the scene of a seed.

    Args:
        seed: as `scene_seed` returns it.
        is_video: make a video with events instead of an image, a scene of one frame.
        easy: for an image, no two objects share a colour or a shape, so that each word alone distinguishes them; for a video, a single
            object and one event less.
    """
    rng = np.random.default_rng([seed, int(is_video)])
    width, height = (int(2 * rng.integers(44, 73)) for _ in range(2))  # 88 … 144 pixels
    count = int(rng.integers(2, 4 if is_video else 5))
    things = _things(rng, width, height, 1 if easy and is_video else count, easy)
    if not is_video:
        return Scene(width, height, 1, 1, things, (), (0.0, 0.0), seed)
    fps, num_frames = int(rng.choice((8, 10, 12))), int(rng.integers(24, 49))  # 1.9 to 5.9 seconds
    drift = tuple(float(rng.uniform(-0.06, 0.06)) * side for side in (width, height)) if rng.random() < 0.5 else (0.0, 0.0)
    scene = Scene(width, height, fps, num_frames, things, (), (drift[0], drift[1]), seed)
    for _ in range(int(rng.integers(2, 4)) - easy):
        scene = _with_event(rng, scene)
    return scene


def _things(rng: np.random.Generator, width: int, height: int, count: int, distinct: bool) -> tuple[Thing, ...]:
    """Objects of which no two have the same shape, colour and size, but many share one of these; if `distinct`, only the size."""
    shorter = min(width, height)
    found: list[Thing] = []
    names: set[tuple[str, str, str]] = set()
    for attempt in range(_TRIES * count):
        if len(found) == count:
            break
        shape, colour, size = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), str(rng.choice(list(SIZES)))
        if found and not distinct and rng.random() < 0.35:  # one that only both words distinguish
            like = found[int(rng.integers(len(found)))]
            shape, colour = (like.shape, colour) if rng.random() < 0.5 else (shape, like.colour)
        if (shape, colour, size) in names or (distinct and any(shape == other.shape or colour == other.colour for other in found)):
            continue
        side = float(rng.uniform(*SIZES[size])) * shorter
        x, y = (float(rng.uniform(side / 2 + 1, length - side / 2 - 1)) for length in (width, height))
        gap = max((_overlap(x, y, side, other) for other in found), default=0.0)
        if gap > (0.0 if attempt < _TRIES else 0.15):
            continue
        found.append(Thing(shape, colour, size, x, y, side))
        names.add((shape, colour, size))
    return tuple(found)


def _overlap(x: float, y: float, side: float, other: Thing) -> float:
    """Intersection area of two objects over the area of the smaller one."""
    across, down = ((side + other.side) / 2 - abs(a - b) for a, b in ((x, other.x), (y, other.y)))
    shared = max(0.0, min(across, side, other.side)) * max(0.0, min(down, side, other.side))
    return shared / min(side, other.side) ** 2


def _with_event(rng: np.random.Generator, scene: Scene) -> Scene:
    """The scene with one more event; unchanged if no valid one was found."""
    weights = np.array(list(KINDS.values()))
    for _ in range(_TRIES):
        kind = str(rng.choice(list(KINDS), p=weights / weights.sum()))
        length = float(rng.uniform(0.25, 0.5)) * scene.duration
        start = float(rng.uniform(0.04 * scene.duration, 0.96 * scene.duration - length))
        thing = int(rng.integers(len(scene.things)))
        event = _shaped(rng, scene, Event(thing, kind, round(start, 3), round(start + length, 3)))
        if event is None or any(_clashes(event, other, scene.duration) for other in scene.events):
            continue
        changed = replace(scene, events=tuple(sorted((*scene.events, event), key=lambda one: one.start)))
        if _fits(changed, event):
            return changed
    return scene


def _clashes(event: Event, other: Event, duration: float) -> bool:
    """Whether two events are ambiguous in a text or by their spans, or cannot both happen."""
    shared = min(event.end, other.end) - max(event.start, other.start)
    if shared / (max(event.end, other.end) - min(event.start, other.start)) > 0.3:
        return True
    involved = {event.thing, event.other} & {other.thing, other.other} - {None}
    if not involved:
        return False
    once = ("grows", "appears", "disappears", "hits")
    return shared > -0.05 * duration or event.kind == other.kind or (event.kind in once and other.kind in once)


def _shaped(rng: np.random.Generator, scene: Scene, event: Event) -> Event | None:
    """The event with its displacement, colour or other object; None if there is none."""
    thing, shorter = scene.things[event.thing], min(scene.width, scene.height)
    if event.kind in _DIRECTIONS:
        distance = float(rng.uniform(0.28, 0.55)) * shorter
        across, down = _DIRECTIONS[event.kind]
        return replace(event, dx=across * distance, dy=down * distance)
    if event.kind == "shakes":
        return replace(event, dx=float(rng.uniform(0.08, 0.11)) * shorter, shake=float(rng.uniform(0.09, 0.14)) * scene.duration)
    if event.kind == "turns":
        return replace(event, colour=str(rng.choice([colour for colour in COLOURS if colour != thing.colour])))
    if event.kind == "hits":
        other = int(rng.integers(len(scene.things)))
        return None if other == event.thing else _towards(scene, event, other)
    return None if event.kind == "grows" and thing.size == "large" else event


def _towards(scene: Scene, event: Event, other: int) -> Event | None:
    """A straight movement towards another object that ends where their boxes touch; None if the way is too short."""
    begin, target = scene.state(event.thing, event.start), scene.state(other, event.end)
    drift = [after - before for after, before in zip(scene.offset(event.end), scene.offset(event.start), strict=True)]
    dx, dy = target.x - begin.x - drift[0], target.y - begin.y - drift[1]
    reach = (begin.side + target.side) / 2
    share = min((1 - reach / abs(d) for d in (dx, dy) if abs(d) > reach), default=0.0)
    share = max((1 - reach / abs(d) for d in (dx, dy) if abs(d) > reach), default=0.0) if share > 0 else 0.0
    distance = share * float(np.hypot(dx, dy))
    if distance < 0.2 * min(scene.width, scene.height):
        return None
    return replace(event, dx=share * dx, dy=share * dy, other=other)


def _fits(scene: Scene, added: Event) -> bool:
    """Whether all objects stay in the image, hits still end in contact, and the object of the added event is mostly visible during it."""
    for event in scene.events:
        if event.other is not None:  # an earlier movement may have been added since, of either
            mine, other = scene.state(event.thing, event.end), scene.state(event.other, event.end)
            if abs(max(abs(mine.x - other.x), abs(mine.y - other.y)) - (mine.side + other.side) / 2) > 1e-6:
                return False
    for time in np.linspace(0, scene.duration, 25):
        states = [scene.state(number, float(time)) for number in range(len(scene.things))]
        for state in states:
            x1, y1, x2, y2 = state.box
            if x1 < 0 or y1 < 0 or x2 > scene.width or y2 > scene.height:
                return False
        for event in scene.events:
            if event.start <= time <= event.end and event.kind != "disappears" and not states[event.thing].visible:
                return False
        if added.start <= time <= added.end:
            mine = states[added.thing]
            nearer = [Thing("", "", "", state.x, state.y, state.side) for state in states[added.thing + 1 :] if state.visible]
            if max((_overlap(mine.x, mine.y, mine.side, other) for other in nearer), default=0.0) > 0.6:
                return False
    return True


# ============================================================ Drawing


class Painter:
    """Draws the frames of one scene; the background is drawn once."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.rng = np.random.default_rng([scene.seed, 2])
        self.margin = int(np.ceil(max(map(abs, scene.drift)))) + 1
        self.ground = self._ground(scene.height + 2 * self.margin, scene.width + 2 * self.margin)
        self.noise = float(self.rng.uniform(0, 7))
        self.shades = self.rng.uniform(-16, 16, (len(scene.things), 3)).astype(np.float32)

    def _ground(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) a dark background: smooth patches of colour, sometimes stripes, and noise."""
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        coarse = self.rng.uniform(50, 125, (*self.rng.integers(2, 7, 2), 3))
        y, x = rows[:, 0] / height * (coarse.shape[0] - 1), columns[0] / width * (coarse.shape[1] - 1)
        y0, x0 = y.astype(int), x.astype(int)
        fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
        top = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, x0 + 1] * fx
        bottom = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, x0 + 1] * fx
        ground = top * (1 - fy) + bottom * fy
        if self.rng.random() < 0.4:
            angle, period = self.rng.uniform(0, np.pi), self.rng.uniform(8, 30)
            wave = np.sin(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period)
            ground += wave[..., None] * self.rng.uniform(5, 18)
        return (ground + self.rng.normal(0, self.rng.uniform(0, 7), ground.shape)).astype(np.float32)

    def frame(self, number: int) -> np.ndarray:
        """(height, width, 3) uint8, frame `number` of the scene. Draw frames in order: the noise of each is drawn from one generator."""
        scene, time = self.scene, number / self.scene.fps
        x, y = (self.margin - round(moved) for moved in scene.offset(time))
        canvas = self.ground[y : y + scene.height, x : x + scene.width].copy()
        for place in range(len(scene.things)):
            self._draw_thing(canvas, place, scene.state(place, time))
        if self.noise > 1:
            canvas += self.rng.standard_normal(canvas.shape, dtype=np.float32) * self.noise
        return np.clip(canvas, 0, 255).astype(np.uint8)

    def _colour(self, number: int, name: str) -> np.ndarray:
        return np.asarray(COLOURS[name], np.float32) + self.shades[number]

    def _draw_thing(self, canvas: np.ndarray, number: int, state: State) -> None:
        """Draws an object with the motion cues of its current event."""
        thing, here = self.scene.things[number], (state.x, state.y)
        own, colour = self._colour(number, thing.colour), self._colour(number, state.colour)
        if not state.visible:
            if state.deed == "disappears":
                self._draw(canvas, thing.shape, (*here, state.side), own, outline=True)
            return
        for x, y, opacity in state.tail:
            self._draw(canvas, thing.shape, (x, y, state.side * (_HIT_TAIL if state.deed == "hits" else 1)), colour, opacity)
        if state.deed == "grows":
            for scale, opacity in _SWELLING:
                self._draw(canvas, thing.shape, (*here, state.side * scale), colour, opacity)
        if state.deed == "appears":
            self._draw(canvas, thing.shape, (*here, state.side * _RIM), np.asarray(_DARK, np.float32))
        if state.hit_by is not None:
            self._draw(canvas, thing.shape, (*here, state.side * _RIM), self._colour(state.hit_by, self.scene.things[state.hit_by].colour))
        self._draw(canvas, thing.shape, (*here, state.side), colour)
        if state.deed == "turns":
            self._draw(canvas, thing.shape, (*here, state.side * _CORE), own)

    def _draw(
        self,
        canvas: np.ndarray,
        shape: str,
        place: tuple[float, float, float],
        colour: np.ndarray,
        opacity: float = 1.0,
        outline: bool = False,
    ) -> None:
        x0, y0, side = place
        half = side / 2
        left, top = max(0, int(x0 - half) - 1), max(0, int(y0 - half) - 1)
        part = canvas[top : max(0, int(y0 + half) + 2), left : max(0, int(x0 + half) + 2)]
        x = (np.arange(left, left + part.shape[1], dtype=np.float32) + 0.5 - x0)[None]
        y = (np.arange(top, top + part.shape[0], dtype=np.float32) + 0.5 - y0)[:, None]
        outside = _outside(shape, x, y, half)
        if outline:
            outside = abs(outside + 1) - 1  # a line of two pixels, within the shape
        cover = opacity * np.clip(0.5 - outside, 0, 1)[..., None]  # (rows, columns, 1), soft at the edge
        part += cover * (colour - part)


def _outside(shape: str, x: np.ndarray, y: np.ndarray, half: float) -> np.ndarray:
    """Signed distance in pixels of points to a shape (below 0: inside) that fills a box of side 2·half around the origin."""
    if shape == "circle":
        return np.hypot(x, y) - half
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - half
    if shape == "triangle":  # the tip is at the top; the slope of its sides is 2
        return np.maximum(y - half, (2 * abs(x) - y - half) / np.sqrt(5.0))
    arm = 0.36 * half
    return np.minimum(np.maximum(abs(x) - half, abs(y) - arm), np.maximum(abs(x) - arm, abs(y) - half))


def shape_mask(shape: str, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """
    Returns (height, width) booleans, true inside a shape that fills a box.

    Args:
        shape: one of `SHAPES`.
        box: x1, y1, x2, y2 in pixels. A shape fills a square, which is stretched to the box.
        size: (height, width) of the image in pixels.
    """
    x1, y1, x2, y2 = box
    x, y = (np.arange(length, dtype=np.float32) + 0.5 for length in size[::-1])
    across, down = (2 * (line - low) / (high - low) - 1 for line, low, high in ((x, x1, x2), (y, y1, y2)))
    return _outside(shape, across[None], down[:, None], 1.0) < 0


__all__ = ["COLOURS", "KINDS", "SHAPES", "SIZES", "Event", "Painter", "Scene", "State", "Thing", "make_scene", "scene_seed", "shape_mask"]
