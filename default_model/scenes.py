"""Scenes of coloured shapes: sampled, then drawn with Pillow. Pure: the random source comes in as an argument.

A scene lies on a board of three columns and three rows, at most one thing a cell, so that "where", "left of" and the
reading order have one answer. Coordinates are fractions of the picture, origin at the top left. Knows nothing of
questions or models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rgb = tuple[int, int, int]
Point = tuple[float, float]

#: Anchors a colour; a drawn colour is a random mixture of them, so the pure values that people draw with are inside.
PALETTE: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 20, 30), (200, 0, 0)),
    "orange": ((255, 165, 0), (255, 128, 0), (250, 140, 20)),
    "yellow": ((255, 255, 0), (245, 225, 40), (255, 235, 60)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 160, 50)),
    "cyan": ((0, 255, 255), (40, 210, 220), (64, 224, 230)),
    "blue": ((0, 0, 255), (30, 60, 215), (20, 20, 180)),
    "purple": ((128, 0, 128), (130, 40, 170), (150, 30, 200)),
    "pink": ((255, 105, 180), (250, 130, 190), (255, 170, 200)),
    "brown": ((139, 69, 19), (110, 65, 30), (150, 75, 30)),
    "black": ((0, 0, 0), (15, 15, 15), (25, 25, 25)),
    "white": ((255, 255, 255), (250, 250, 250), (240, 240, 240)),
    "gray": ((128, 128, 128), (150, 150, 150), (110, 110, 110)),
}
COLORS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
SIZES = ("small", "large")
MAX_THINGS = 4
#: Pairs that a training run with `--hold-out` never sees: every colour once, every shape at least once.
HELD_OUT = frozenset((color, SHAPES[(3 * i + 1) % len(SHAPES)]) for i, color in enumerate(COLORS))
#: Backgrounds people draw on come up most.
BACKGROUND_WEIGHTS = {"white": 14, "black": 5, "gray": 3}
#: Half-width of the band around a cell's border where no centre lies, so that the cell can be told.
BORDER = 0.035
#: Centres of one column differ by at most this, of two columns by at least that; the same for rows.
SAME, APART = 0.12, 0.2


@dataclass(frozen=True)
class Thing:
    """One drawn shape; `x`, `y` its centre and `radius` as fractions of the picture's width and height."""

    color: str
    shape: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        return "large" if self.radius > 0.105 else "small"

    @property
    def column(self) -> int:
        return min(2, int(self.x * 3))

    @property
    def row(self) -> int:
        return min(2, int(self.y * 3))

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order (row by row, left to right) on one background colour."""

    things: tuple[Thing, ...]
    background: str


def sample_scene(
    rng: random.Random, excluded: frozenset[tuple[str, str]] = frozenset(), count: int | None = None
) -> Scene:
    """A random scene of `count` (or 1 to 4) things; no thing is an `excluded` (colour, shape) pair."""
    count = count or rng.choices((1, 2, 3, 4), (0.3, 0.32, 0.22, 0.16))[0]
    pairs = _sample_pairs(rng, count, excluded)
    free = [c for c in COLORS if all(c != color for color, _ in pairs)]
    background = rng.choices(free, [BACKGROUND_WEIGHTS.get(c, 1) for c in free])[0]
    return Scene(place(rng, pairs), background)


def _sample_pairs(rng: random.Random, count: int, excluded: frozenset[tuple[str, str]]) -> list[tuple[str, str]]:
    """Colours and shapes; now and then things share the colour, the shape or both, or counting would be idle."""
    allowed = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in excluded]
    pairs = [rng.choice(allowed)]
    while len(pairs) < count:
        color, shape = rng.choice(pairs)
        kind = rng.random()
        if kind < 0.08:
            pairs.append((color, shape))
        elif kind < 0.28:
            pairs.append(rng.choice([p for p in allowed if p[1] == shape]))
        elif kind < 0.4:
            pairs.append(rng.choice([p for p in allowed if p[0] == color]))
        else:
            pairs.append(rng.choice(allowed))
    return pairs


def place(rng: random.Random, pairs: list[tuple[str, str]]) -> tuple[Thing, ...]:
    """Gives every pair a size and a cell of its own, all relations unambiguous; the result is in reading order."""
    while True:
        cells = rng.sample(range(9), len(pairs))
        if len(pairs) == 1 and rng.random() < 0.4:
            cells = [4]
        things = [_put(rng, pair, cell, len(pairs)) for pair, cell in zip(pairs, cells, strict=True)]
        if all(_clear(a, b) for i, a in enumerate(things) for b in things[:i]):
            return tuple(sorted(things, key=lambda t: (t.row, t.column)))


def _put(rng: random.Random, pair: tuple[str, str], cell: int, count: int) -> Thing:
    largest = {1: 0.4, 2: 0.21}.get(count, 0.16)
    while True:
        radius = rng.uniform(0.06, 0.085) if rng.random() < 0.42 else rng.uniform(0.125, largest)
        x = (cell % 3 + rng.uniform(0, 1)) / 3
        y = (cell // 3 + rng.uniform(0, 1)) / 3
        inside = all(radius * 1.05 < v < 1 - radius * 1.05 for v in (x, y))
        off_border = all(abs(v - border) > BORDER for v in (x, y) for border in (1 / 3, 2 / 3))
        if inside and off_border:
            return Thing(*pair, x, y, radius)
        if radius > 0.2:  # too large for most places: shrink the odds, never loop for long
            largest = max(0.16, largest * 0.9)


def _clear(a: Thing, b: Thing) -> bool:
    """Neither touching, nor half beside each other."""
    if math.dist((a.x, a.y), (b.x, b.y)) < 1.12 * (a.radius + b.radius) + 0.02:
        return False
    columns = abs(a.x - b.x) <= SAME if a.column == b.column else abs(a.x - b.x) >= APART
    rows = abs(a.y - b.y) <= SAME if a.row == b.row else abs(a.y - b.y) >= APART
    return columns and rows


def _turned(points: list[Point], angle: float) -> list[Point]:
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in points]


def _star() -> list[Point]:
    reach = [1.08 if i % 2 == 0 else 0.43 for i in range(10)]
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(reach)]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    height = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return [(math.sin(t) ** 3, -h / 16 - 0.1) for t, h in zip(angles, height, strict=True)]


def _cross(arm: float = 0.33) -> list[Point]:
    corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    return [p for quarter in range(4) for p in _turned(corner, quarter * math.pi / 2)]


def _circle(radius: float = 0.95) -> list[Point]:
    return [(radius * math.cos(math.pi * i / 24), radius * math.sin(math.pi * i / 24)) for i in range(48)]


#: Outlines within the unit disc, and how far a shape may be turned (radians) and still be called the same.
OUTLINES: dict[str, tuple[Callable[[], list[Point]], float]] = {
    "circle": (_circle, 0.0),
    "ring": (_circle, 0.0),
    "square": (lambda: [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)], 0.12),
    "triangle": (lambda: [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)], 0.15),
    "star": (_star, 0.3),
    "cross": (_cross, 0.12),
    "heart": (_heart, 0.15),
    "diamond": (lambda: [(0.0, -1.05), (0.8, 0.0), (0.0, 1.05), (-0.8, 0.0)], 0.1),
}


def mix_color(rng: random.Random, color: str) -> Rgb:
    """A shade that is still called `color`."""
    weights = [rng.random() ** 3 + 1e-3 for _ in PALETTE[color]]
    total = sum(weights)
    channels = zip(*PALETTE[color], strict=True)
    mixed = [sum(w * v for w, v in zip(weights, c, strict=True)) / total + rng.uniform(-6, 6) for c in channels]
    red, green, blue = (max(0, min(255, round(v))) for v in mixed)
    return red, green, blue


def render(scene: Scene, rng: random.Random, size: tuple[int, int] | None = None) -> Image.Image:
    """An RGB picture of `scene`, of `size` (width, height) or a random one; shades, turns and noise vary."""
    width, height = size or _sample_size(rng)
    scale = 3 if max(width, height) < 200 else 1
    shades = {color: mix_color(rng, color) for color in COLORS}
    image = Image.new("RGB", (width * scale, height * scale), shades[scene.background])
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw(pen, thing, image.size, shades[thing.color], shades[scene.background], rng)
    if scale > 1:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _disturbed(image, rng)


def _sample_size(rng: random.Random) -> tuple[int, int]:
    longer = rng.choice((64, 96, 128, 160, 224, 256, 320, 384, 512))
    shorter = longer if rng.random() < 0.6 else round(longer * rng.uniform(0.7, 1.0))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def _draw(
    pen: ImageDraw.ImageDraw, thing: Thing, size: tuple[int, int], fill: Rgb, behind: Rgb, rng: random.Random
) -> None:
    """Round in pixels on half of the non-square pictures, stretched with the picture on the others."""
    width, height = size
    stretch = (width, height) if rng.random() < 0.5 else (min(size), min(size))
    outline, turn = OUTLINES[thing.shape]
    points = _turned(outline(), rng.uniform(-turn, turn))

    def scaled(factor: float) -> list[Point]:
        reach = thing.radius * factor
        return [
            (thing.x * width + x * reach * stretch[0], thing.y * height + y * reach * stretch[1]) for x, y in points
        ]

    if rng.random() < 0.08:
        pen.polygon(scaled(1.06), fill=(20, 20, 20))
    pen.polygon(scaled(1.0), fill=fill)
    if thing.shape == "ring":
        pen.polygon(scaled(rng.uniform(0.5, 0.66)), fill=behind)


def _disturbed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Mild noise on a third of the pictures and blur on a few: photographs of screens, JPEG, scanners."""
    if rng.random() < 0.1 and min(image.size) >= 128:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.35:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 9), (*image.size[::-1], 3))
        pixels = np.clip(np.asarray(image).astype(np.float32) + noise, 0, 255)
        image = Image.fromarray(pixels.astype(np.uint8))
    return image
