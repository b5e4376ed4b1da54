"""The upright boxes around shapes: left, top, right and bottom, of numbers or of texts for them.

Each is computed as it is read, so that what is no number is found there.
"""

import cmath
import math
from collections.abc import Iterable, Iterator
from typing import Any


def around(points: Iterable[Any]) -> Iterator[float]:
    """The sides of the box around points."""
    x, y = zip(*(map(float, point) for point in points), strict=True)
    yield from (min(x), min(y), max(x), max(y))


def around_centre(values: Iterable[Any]) -> Iterator[float]:
    """The sides of a box with a centre's x and y, a width and a height."""
    x, y, w, h = map(float, values)
    yield from (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def beside_corner(values: Iterable[Any]) -> Iterator[float]:
    """The sides of a box with the upper left corner's x and y, a width and a height."""
    x, y, w, h = map(float, values)
    yield from (x, y, x + w, y + h)


def around_circle(points: Iterable[Any]) -> Iterator[float]:
    """The sides of the box around a circle of a centre and a point on its line."""
    (x, y), (on_x, on_y) = (map(float, point) for point in points)
    radius = math.hypot(on_x - x, on_y - y)
    yield from (x - radius, y - radius, x + radius, y + radius)


def around_ellipse(values: Iterable[Any], degrees: Any) -> Iterator[float]:
    """The sides of the box around an ellipse of a centre and two radii, which is turned around its
    centre."""
    x, y, a, b = map(float, values)
    turn = math.radians(float(degrees))
    w = math.hypot(a * math.cos(turn), b * math.sin(turn))
    h = math.hypot(a * math.sin(turn), b * math.cos(turn))
    yield from (x - w, y - h, x + w, y + h)


def turned(sides: Iterable[Any], degrees: Any) -> Iterator[float]:
    """The sides of the box around one that is turned around its centre."""
    left, top, right, bottom = map(float, sides)
    if not float(degrees):
        yield from (left, top, right, bottom)
        return
    turn = cmath.rect(1, math.radians(float(degrees)))
    centre = complex(left + right, top + bottom) / 2
    corners = [complex(x, y) for x in (left, right) for y in (top, bottom)]
    moved = ((corner - centre) * turn + centre for corner in corners)
    yield from around((corner.real, corner.imag) for corner in moved)
