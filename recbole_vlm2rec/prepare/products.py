"""Products of the generated shop: what attributes they have, their titles and their pictures.

May import numpy and pillow only. Title-only attributes never reach the picture, image-only ones never the title.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "category": ("mug", "shirt", "lamp", "shoe", "bottle", "bag", "umbrella", "clock"),
    "style": ("vintage", "modern", "sporty", "rustic", "elegant", "playful"),
    "material": ("cotton", "steel", "bamboo", "leather", "ceramic", "glass"),
    "occasion": ("travel", "party", "office", "garden"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple"),
    "pattern": ("plain", "striped", "dotted", "checked"),
    "scene": ("kitchen", "meadow", "beach", "night"),
}
"""Attribute -> its words. No word belongs to two attributes, so a word alone says which attribute it is of."""

TITLE_ATTRIBUTES: tuple[str, ...] = ("style", "material", "occasion", "category")
"""Attributes that a title states, in the order of its words."""

IMAGE_ATTRIBUTES: tuple[str, ...] = ("colour", "pattern", "category", "scene")
"""Attributes that a picture shows: main colour, pattern on the product, its outline, and what stands behind it."""

SUPERSAMPLING = 4

_COLOURS = {
    "red": (208, 36, 44),
    "orange": (245, 134, 24),
    "yellow": (244, 208, 28),
    "green": (34, 150, 72),
    "blue": (34, 98, 214),
    "purple": (134, 52, 178),
}
_WHITE = (252, 252, 250)
_DARK = (52, 50, 58)

_Point = tuple[float, float]


@dataclass(frozen=True)
class Product:
    """One product: its words in the order of `ATTRIBUTES`. Hashable; `product["colour"]` gives one word."""

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(ATTRIBUTES):
            raise ValueError(f"a product needs {len(ATTRIBUTES)} words ({', '.join(ATTRIBUTES)}), got {len(self.values)}")
        for (attribute, words), value in zip(ATTRIBUTES.items(), self.values):
            if value not in words:
                raise ValueError(f"{value!r} is no {attribute}; choose one of {', '.join(words)}")

    def __getitem__(self, attribute: str) -> str:
        return self.values[tuple(ATTRIBUTES).index(attribute)]

    def replace(self, **words: str) -> Product:
        """The same product with some words exchanged, e.g. `product.replace(colour="blue")`."""
        unknown = [name for name in words if name not in ATTRIBUTES]
        if unknown:
            raise ValueError(f"unknown attribute {unknown[0]!r}; choose from {', '.join(ATTRIBUTES)}")
        return Product(tuple(words.get(name, value) for name, value in zip(ATTRIBUTES, self.values)))


def random_product(rng: np.random.Generator) -> Product:
    """A product whose words are drawn uniformly and independently."""
    return Product(tuple(words[int(rng.integers(len(words)))] for words in ATTRIBUTES.values()))


def held_out(product: Product) -> bool:
    """True for the fixed quarter of all products that shops draw from; the `tiny` backbone is pretrained on the others only."""
    return zlib.crc32(" ".join(product.values).encode()) % 4 == 0


def title(product: Product) -> str:
    """The title: one word for each of `TITLE_ATTRIBUTES`, e.g. `vintage cotton travel bag`."""
    return " ".join(product[name] for name in TITLE_ATTRIBUTES)


def render(product: Product, size: int = 56, rng: np.random.Generator | None = None) -> Image.Image:
    """The picture of a product, RGB, `size` x `size` pixels.

    With `rng`, position, scale, lighting and the place of the pattern vary (the rng is consumed alike for every product,
    so that pictures drawn from equal rngs differ by the attributes only); without it the product stands in the middle.
    """
    if size < 16:
        raise ValueError(f"a picture needs at least 16 pixels a side to show its product, got {size}")
    shift_x, shift_y, scale, light, phase = (0.0, 0.0, 1.0, 1.0, 0.0) if rng is None else _nuisance(rng)
    side = size * SUPERSAMPLING
    pen = _Pen(side, (0.5 + shift_x, 0.5 + shift_y), 0.40 * scale)
    _SHAPES[product["category"]](pen)

    picture = _backdrop(product["scene"], side)
    shadow = Image.new("L", (side, side), 0)
    ImageDraw.Draw(shadow).ellipse(pen.box(-0.85, 0.80, 0.85, 1.10), fill=90)
    picture.paste((30, 30, 40), mask=shadow)
    border = max(3, side // 60 * 2 + 1)
    halo = Image.composite(pen.body, pen.detail, pen.body).filter(ImageFilter.MaxFilter(border))
    picture.paste(_WHITE, mask=halo)
    colour = _COLOURS[product["colour"]]
    picture.paste(_cloth(product["pattern"], colour, side, phase), mask=pen.body)
    picture.paste(_DARK, mask=pen.detail)
    picture.paste(_WHITE, mask=pen.light)
    return picture.reduce(SUPERSAMPLING).point(lambda level: min(255, round(level * light)))


def _nuisance(rng: np.random.Generator) -> tuple[float, float, float, float, float]:
    shift_x, shift_y = rng.uniform(-0.05, 0.05, size=2)
    return float(shift_x), float(shift_y), float(rng.uniform(0.88, 1.08)), float(rng.uniform(0.90, 1.06)), float(rng.random())


class _Pen:
    """Masks of one product: `body` takes colour and pattern, `detail` is dark, `light` is white; units: [-1, 1] each way."""

    def __init__(self, side: int, centre: _Point, reach: float) -> None:
        self.side, self.centre, self.reach = side, centre, reach
        self.body, self.detail, self.light = (Image.new("L", (side, side), 0) for _ in range(3))

    def at(self, x: float, y: float) -> tuple[int, int]:
        return (
            round((self.centre[0] + x * self.reach) * self.side),
            round((self.centre[1] + y * self.reach) * self.side),
        )

    def box(self, left: float, top: float, right: float, bottom: float) -> list[tuple[int, int]]:
        return [self.at(left, top), self.at(right, bottom)]

    def width(self, share: float) -> int:
        return max(1, round(share * self.reach * self.side))

    def polygon(self, mask: Image.Image, *points: _Point) -> None:
        ImageDraw.Draw(mask).polygon([self.at(*point) for point in points], fill=255)

    def ellipse(self, mask: Image.Image, *box: float, fill: int = 255) -> None:
        ImageDraw.Draw(mask).ellipse(self.box(*box), fill=fill)

    def block(self, mask: Image.Image, *box: float, radius: float = 0.0) -> None:
        ImageDraw.Draw(mask).rounded_rectangle(self.box(*box), self.width(radius) if radius else 0, fill=255)

    def arc(self, mask: Image.Image, *box: float, start: int, end: int, width: float) -> None:
        ImageDraw.Draw(mask).arc(self.box(*box), start, end, fill=255, width=self.width(width))

    def line(self, mask: Image.Image, *points: _Point, width: float) -> None:
        ImageDraw.Draw(mask).line([self.at(*point) for point in points], fill=255, width=self.width(width))


def _mug(pen: _Pen) -> None:
    pen.arc(pen.body, 0.15, -0.40, 0.98, 0.45, start=-95, end=95, width=0.20)
    pen.block(pen.body, -0.80, -0.70, 0.50, 0.90, radius=0.20)
    pen.ellipse(pen.detail, -0.70, -0.76, 0.40, -0.46)


def _shirt(pen: _Pen) -> None:
    half = [(0.28, -0.88), (0.62, -0.74), (1.02, -0.18), (0.72, 0.08), (0.56, -0.12), (0.56, 0.92)]
    pen.polygon(pen.body, *half, *[(-x, y) for x, y in reversed(half)])
    pen.ellipse(pen.detail, -0.27, -1.00, 0.27, -0.64)


def _lamp(pen: _Pen) -> None:
    pen.polygon(pen.body, (-0.42, -0.92), (0.42, -0.92), (0.86, 0.22), (-0.86, 0.22))
    pen.block(pen.detail, -0.08, 0.22, 0.08, 0.86)
    pen.ellipse(pen.detail, -0.48, 0.74, 0.48, 0.98)


def _shoe(pen: _Pen) -> None:
    heel = [(-0.94, 0.52), (-0.92, -0.52), (-0.62, -0.40), (-0.34, -0.60)]
    toe = [(-0.08, -0.52), (0.30, -0.02), (0.78, 0.14), (0.98, 0.52)]
    pen.polygon(pen.body, *heel, *toe)
    pen.block(pen.detail, -0.98, 0.50, 1.02, 0.74, radius=0.10)
    for step in range(3):
        x, y = -0.06 + 0.15 * step, -0.40 + 0.17 * step
        pen.line(pen.light, (x - 0.16, y + 0.12), (x + 0.06, y - 0.02), width=0.07)


def _bottle(pen: _Pen) -> None:
    pen.block(pen.body, -0.46, -0.34, 0.46, 0.96, radius=0.18)
    pen.polygon(pen.body, (-0.20, -0.72), (0.20, -0.72), (0.44, -0.18), (-0.44, -0.18))
    pen.block(pen.detail, -0.25, -1.02, 0.25, -0.70, radius=0.06)


def _bag(pen: _Pen) -> None:
    pen.arc(pen.detail, -0.46, -0.98, 0.46, 0.30, start=180, end=360, width=0.14)
    pen.polygon(pen.body, (-0.72, -0.36), (0.72, -0.36), (0.96, 0.88), (-0.96, 0.88))
    pen.block(pen.light, -0.12, -0.22, 0.12, 0.00, radius=0.05)


def _umbrella(pen: _Pen) -> None:
    pen.line(pen.detail, (0.0, -1.0), (0.0, 0.72), width=0.11)
    pen.arc(pen.detail, -0.38, 0.50, 0.06, 0.98, start=0, end=180, width=0.11)
    canopy = Image.new("L", (pen.side, pen.side), 0)
    pen.ellipse(canopy, -1.02, -0.88, 1.02, 1.08)
    for left in (-1.02, -0.34, 0.34):
        pen.ellipse(canopy, left, -0.10, left + 0.68, 0.40, fill=0)
    ImageDraw.Draw(canopy).rectangle([(0, pen.at(0, 0.12)[1]), (pen.side, pen.side)], fill=0)
    pen.body.paste(255, mask=canopy)
    pen.detail.paste(0, mask=canopy)


def _clock(pen: _Pen) -> None:
    for x in (-0.52, 0.52):
        pen.line(pen.detail, (0.6 * x, 0.4), (1.25 * x, 0.98), width=0.18)
        pen.ellipse(pen.detail, x - 0.30, -1.00, x + 0.30, -0.44)
    pen.ellipse(pen.body, -0.84, -0.80, 0.84, 0.88)
    disc = Image.new("L", (pen.side, pen.side), 0)
    pen.ellipse(disc, -0.84, -0.80, 0.84, 0.88)
    pen.detail.paste(0, mask=disc)
    pen.line(pen.detail, (0.0, -0.46), (0.0, 0.04), (0.34, 0.26), width=0.12)


_SHAPES = {
    "mug": _mug,
    "shirt": _shirt,
    "lamp": _lamp,
    "shoe": _shoe,
    "bottle": _bottle,
    "bag": _bag,
    "umbrella": _umbrella,
    "clock": _clock,
}


def _cloth(pattern: str, colour: tuple[int, int, int], side: int, phase: float) -> Image.Image:
    """A full sheet of the product's colour with the pattern in a pale tint of it."""
    sheet = Image.new("RGB", (side, side), colour)
    draw = ImageDraw.Draw(sheet)
    tint = tuple(round(0.22 * level + 0.78 * 255) for level in colour)
    period = side // 7
    start = -period + round(phase * period)
    steps = range(start, side + period, period)
    if pattern == "striped":
        for y in steps:
            draw.rectangle([(0, y), (side, y + period * 2 // 5)], fill=tint)
    elif pattern == "dotted":
        radius = period * 3 // 10
        for row, y in enumerate(steps):
            for x in steps:
                middle = x + (row % 2) * period // 2
                draw.ellipse([(middle - radius, y - radius), (middle + radius, y + radius)], fill=tint)
    elif pattern == "checked":
        for row, y in enumerate(steps):
            for column, x in enumerate(steps):
                if (row + column) % 2:
                    draw.rectangle([(x, y), (x + period - 1, y + period - 1)], fill=tint)
    return sheet


def _backdrop(scene: str, side: int) -> Image.Image:
    """What stands behind the product; muted, so that the product's own colour dominates."""

    def bands(*tops: tuple[float, tuple[int, int, int]]) -> Image.Image:
        striped = Image.new("RGB", (side, side))
        for top, colour in tops:
            ImageDraw.Draw(striped).rectangle([(0, round(top * side)), (side, side)], fill=colour)
        return striped

    def disc(x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
        box = [(round((x - radius) * side), round((y - radius) * side)), (round((x + radius) * side), round((y + radius) * side))]
        ImageDraw.Draw(sheet).ellipse(box, fill=colour)

    if scene == "kitchen":
        sheet = bands((0.0, (240, 228, 208)), (0.74, (176, 134, 98)), (0.78, (194, 152, 114)))
        for step in range(1, 5):
            x = round(step * side / 5)
            ImageDraw.Draw(sheet).line([(x, 0), (x, round(0.74 * side))], fill=(226, 212, 190), width=max(1, side // 90))
    elif scene == "meadow":
        sheet = bands((0.0, (206, 230, 242)), (0.62, (158, 196, 128)))
        disc(0.20, 0.80, 0.28, (146, 186, 118))
        disc(0.86, 0.84, 0.30, (146, 186, 118))
    elif scene == "beach":
        sheet = bands((0.0, (222, 238, 244)), (0.44, (110, 184, 200)), (0.66, (238, 220, 172)))
        disc(0.86, 0.14, 0.08, (252, 240, 190))
    else:
        sheet = bands((0.0, (38, 42, 74)), (0.78, (60, 58, 92)))
        disc(0.86, 0.14, 0.09, (240, 236, 206))
        for x, y in ((0.08, 0.12), (0.24, 0.05), (0.10, 0.40), (0.62, 0.05), (0.94, 0.46), (0.05, 0.64)):
            disc(x, y, 0.014, (226, 226, 236))
    return sheet
