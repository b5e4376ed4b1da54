"""The upright boxes around shapes: left, top, right and bottom, from numbers or texts of numbers.

All are generators, so that :func:`.formats.make_object` finds what is no number.
"""

import cmath
import math
from collections.abc import Iterable, Iterator
from typing import Any


def around(points: Iterable[Any]) -> Iterator[float]:
    """The box around points."""
    x, y = zip(*(map(float, point) for point in points), strict=True)
    yield from (min(x), min(y), max(x), max(y))


def around_centre(values: Iterable[Any]) -> Iterator[float]:
    """The box with a centre's x and y, a width and a height."""
    x, y, w, h = map(float, values)
    yield from (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def beside_corner(values: Iterable[Any]) -> Iterator[float]:
    """The box with the upper left corner's x and y, a width and a height."""
    x, y, w, h = map(float, values)
    yield from (x, y, x + w, y + h)


def around_circle(points: Iterable[Any]) -> Iterator[float]:
    """The box around a circle, which is given by its centre and a point on it."""
    (x, y), (on_x, on_y) = (map(float, point) for point in points)
    diameter = 2 * math.hypot(on_x - x, on_y - y)
    yield from around_centre((x, y, diameter, diameter))


def around_ellipse(values: Iterable[Any], degrees: Any) -> Iterator[float]:
    """The box around an ellipse with a centre's x and y and two radii, turned around its centre."""
    x, y, a, b = map(float, values)
    turn = math.radians(float(degrees))
    w = 2 * math.hypot(a * math.cos(turn), b * math.sin(turn))
    h = 2 * math.hypot(a * math.sin(turn), b * math.cos(turn))
    yield from around_centre((x, y, w, h))


def turned(sides: Iterable[Any], degrees: Any) -> Iterator[float]:
    """The box around a box that is turned around its centre."""
    left, top, right, bottom = map(float, sides)
    if not float(degrees):
        yield from (left, top, right, bottom)
        return
    turn = cmath.rect(1, math.radians(float(degrees)))
    centre = complex(left + right, top + bottom) / 2
    corners = [complex(x, y) for x in (left, right) for y in (top, bottom)]
    moved = ((corner - centre) * turn + centre for corner in corners)
    yield from around((corner.real, corner.imag) for corner in moved)
