"""Filled shapes drawn in whole numbers, so that every machine makes the same bytes.

Lengths are in units of 1/16384 of the image's side, angles in 1/1024 of a turn, clockwise as seen; x runs right and y
down. A pixel's share of a shape is counted on a grid of points inside it. Sine and cosine come from a table rounded to
1/4096: no entry lies near the middle between two levels (a test holds them to that), so the last digits of a machine's
own sine cannot matter.

All shapes of one size have the same area, the square of the size, and their centroid is the point they are drawn at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = 1 << 14
"""The image's side."""
TURN = 1 << 10
FRACTION = 12
"""Bits behind the point in the table of sines."""
SHAPES = ("square", "ellipse", "triangle", "heart")
SYMMETRY = (4, 2, 1, 1)
"""Angles of a turn at which a shape looks the same."""

Whole = NDArray[np.int32]

COSINE: Whole = np.rint(np.cos(np.arange(TURN) * (2 * np.pi / TURN)) * (1 << FRACTION)).astype(np.int32)
SINE: Whole = np.roll(COSINE, TURN // 4)

# Lengths for size 1, in 1/65536.
SEMI_MAJOR = 52290  # of the ellipse: sqrt(2 / pi), twice the other
THIRD = 34540  # of the triangle's height sqrt(2.5), which is 1.25 times its base
LOBE = 34681  # diameter of the heart's lobes over sqrt(2): sqrt(2 / (4 + pi))
CENTRE = 10866  # sqrt(2) from its centroid to the middle of the square that carries the lobes, along one of its axes
REACH = (46341, 52291, 69082, 45553)
"""From the centroid to the farthest point of each shape, rounded up."""


def reach(shape: int, size: int) -> int:
    """Units from the centre that hold the whole shape, whatever its angle."""
    return (REACH[shape] * size >> 16) + 1


def points_per_side(side: int) -> int:
    """Points along a pixel's side: 4, and more where pixels are large."""
    return max(4, 256 // side)


def _inside(shape: int, u: Whole, v: Whole, size: int) -> NDArray[np.bool_]:
    """Whether points (u, v), seen from the centre along the shape's own axes, belong to it."""
    found: NDArray[np.bool_]
    if shape == 0:
        found = (2 * np.abs(u) <= size) & (2 * np.abs(v) <= size)
    elif shape == 1:
        major = SEMI_MAJOR * size >> 16
        found = u * u + 4 * v * v <= major * major
    elif shape == 2:
        third = THIRD * size >> 16
        found = (v <= third) & (5 * np.abs(u) <= 2 * (v + 2 * third))
    else:  # a square on its corner, and a disc on the middle of each upper edge
        side, middle = LOBE * size >> 16, CENTRE * size >> 16
        p, q = u - v + middle, middle - u - v
        box = (np.abs(p) <= side) & (np.abs(q) <= side)
        square = side * side
        found = box | ((p - side) ** 2 + q * q <= square) | (p * p + (q - side) ** 2 <= square)
    return found


def _axis(first: int, last: int, side: int, points: int, centre: int) -> Whole:
    """Places of the points of pixels ``first`` to ``last``, as seen from the centre."""
    numbers = 2 * np.arange(first * points, last * points, dtype=np.int64) + 1
    return (numbers * UNIT // (2 * side * points) - centre).astype(np.int32)


def coverage(shape: int, size: int, x: int, y: int, angle: int, side: int) -> tuple[Whole, tuple[slice, slice]]:
    """Points of each pixel that lie inside the shape, 0 .. ``points_per_side(side) ** 2``, and the rows and columns of
    an image of ``side`` pixels that they stand for."""
    points, far = points_per_side(side), reach(shape, size)
    left, right = (max(0, (x - far) * side // UNIT), min(side, (x + far) * side // UNIT + 1))
    top, bottom = (max(0, (y - far) * side // UNIT), min(side, (y + far) * side // UNIT + 1))
    across, down = _axis(left, right, side, points, x), _axis(top, bottom, side, points, y)[:, None]
    cosine, sine = COSINE[angle % TURN], SINE[angle % TURN]
    u = (across * cosine + down * sine) >> FRACTION
    v = (down * cosine - across * sine) >> FRACTION
    inside = _inside(shape, u, v, size)
    rows = np.zeros((bottom - top, inside.shape[1]), dtype=np.int32)
    counts = np.zeros((bottom - top, right - left), dtype=np.int32)
    for k in range(points):  # several times as quick as a sum over short axes
        rows += inside[k::points]
    for k in range(points):
        counts += rows[:, k::points]
    return counts, (slice(top, bottom), slice(left, right))


def paint(
    objects: NDArray[np.int32], palette: NDArray[np.int32], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels uint8 [C H W] on black and classes uint8 [H W] of objects (shape, colour, size, x, y, angle) [M 6], each
    over those before it. ``palette`` [colours C]. A pixel's class is 1 + the shape that covers at least half of it,
    the uppermost of several; 0 where there is none."""
    pixels = np.zeros((palette.shape[1], side, side), dtype=np.int32)
    classes = np.zeros((side, side), dtype=np.uint8)
    whole = points_per_side(side) ** 2
    for shape, colour, size, x, y, angle in objects.tolist():
        counts, (rows, columns) = coverage(shape, size, x, y, angle, side)
        under = pixels[:, rows, columns]
        level = palette[colour][:, None, None]
        pixels[:, rows, columns] = (under * (whole - counts) + level * counts + whole // 2) // whole
        classes[rows, columns][2 * counts >= whole] = 1 + shape
    return pixels.astype(np.uint8), classes
