"""Pictures of a run, as PNG files that are the same byte for byte when their pixels are: grids of samples,
comparisons, reconstructions, two-dimensional samples, and films of them over time.

Every picture is written beside its place and renamed, so that a viewer or a kill never meets half of one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from gentrain.errors import UserError
from gentrain.report.canvas import (
    PAPER,
    Bytes,
    as_array,
    as_images,
    below,
    beside,
    fitting_scale,
    framed,
    labelled,
    magnify,
    near_square,
    save_png,
    sheet,
    standing,
    text_line,
    titled,
    write_atomically,
)

AXES = (0.1, 0.06, 0.88, 0.88)
"""Left, bottom, width and height of a scatter's axes in its picture."""

ERROR_GAIN = 2
"""Errors of reconstructions are shown this much brighter."""


def grid(
    x: Tensor | Bytes,
    path: Path,
    *,
    columns: int | None = None,
    scale: int | None = None,
    captions: Sequence[str] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write images ``x`` (uint8 [n C H W], C is 1 or 3) in rows of ``columns``, a near-square by default.

    ``scale``: whole number of pixels per pixel; by default small images are magnified until the grid is about 512
    pixels wide. ``captions``: one line under each image. ``metadata``: goes into the file as text (iteration, seed,
    weights). ValueError for another shape or type.
    """
    images = as_images(x)
    columns = columns or near_square(len(images))
    tiles = magnify(images, scale or fitting_scale(images, columns))
    return save_png(sheet(tiles, columns, captions), path, metadata)


def single(x: Tensor | Bytes, path: Path) -> Path:
    """Write one image ``x`` (uint8 [C H W], C is 1 or 3) as it is, pixel for pixel, for other tools to read."""
    array = as_images(x[None])[0]  # [H W 3]
    grey = x.shape[0] == 1
    return save_png(Image.fromarray(np.ascontiguousarray(array[..., 0] if grey else array)), path, None)


def side_by_side(
    panels: Sequence[tuple[str, Tensor | Bytes]],
    path: Path,
    *,
    columns: int | None = None,
    scale: int | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write one grid per panel (caption, uint8 [n C H W]) next to each other: the averaged and the raw weights."""
    sheets = []
    for caption, x in panels:
        images = as_images(x)
        across = columns or near_square(len(images))
        sheets.append(titled(sheet(magnify(images, scale or fitting_scale(images, across)), across), caption))
    return save_png(beside(sheets, gap=12), path, metadata)


def reconstructions(
    x: Tensor | Bytes,
    xhat: Tensor | Bytes,
    path: Path,
    *,
    columns: int = 8,
    scale: int | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write images, their reconstructions (both uint8 [n C H W]) and the errors between them as three rows.

    The error row is the mean over channels of |x - xhat|, twice as bright as it is. More than ``columns`` images go
    on in three rows further down.
    """
    return save_png(reconstruction_sheet(x, xhat, columns=columns, scale=scale), path, metadata)


def reconstruction_sheet(
    x: Tensor | Bytes, xhat: Tensor | Bytes, *, columns: int = 8, scale: int | None = None
) -> Image.Image:
    """What ``reconstructions`` writes."""
    first, second = as_images(x), as_images(xhat)
    if first.shape != second.shape:
        raise ValueError(f"images {first.shape} and reconstructions {second.shape} differ in shape")
    difference = np.abs(first.astype(np.int16) - second.astype(np.int16)).mean(axis=3, keepdims=True)  # [n H W 1]
    error = np.minimum(difference * ERROR_GAIN, 255).round().astype(np.uint8).repeat(3, axis=3)
    columns = min(columns, len(first))
    scale = scale or fitting_scale(first, columns)
    blocks = []
    for start in range(0, len(first), columns):
        rows = [
            labelled(sheet(magnify(part[start : start + columns], scale), columns), label)
            for part, label in ((first, "image"), (second, "decoded"), (error, f"error x{ERROR_GAIN}"))
        ]
        blocks.append(below(rows, gap=0))
    return below(blocks, gap=8)


def neighbours(
    x: Tensor | Bytes,
    found: Sequence[tuple[str, Tensor | Bytes]],
    path: Path,
    *,
    distances: Sequence[Sequence[Sequence[float]]] | None = None,
    scale: int | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write each sample of ``x`` (uint8 [n C H W]), framed, beside its nearest training images, a row per sample.

    ``found``: (caption, uint8 [n k C H W]) for each way of looking for them, in pixels and in features, nearest first.
    ``distances``: for each way [n][k] numbers, written under the images. ValueError for another shape or type.
    """
    samples = as_images(x)
    panels = [(caption, [as_images(row) for row in images]) for caption, images in found]
    if not panels or any(len(rows) != len(samples) or rows[0].shape[1:] != samples.shape[1:] for _, rows in panels):
        raise ValueError(f"{len(samples)} samples {samples.shape[1:]} need as many rows of neighbours of that shape")
    columns = 1 + sum(len(rows[0]) for _, rows in panels)
    scale = scale or fitting_scale(samples, columns)
    framed_samples = [framed(tile) for tile in magnify(samples, scale)]
    parts = []
    for place, (caption, rows) in enumerate(panels):
        texts = None if distances is None else [[f"{value:.3g}" for value in row] for row in distances[place]]
        sheets = [
            sheet(magnify(row, scale), len(row), None if texts is None else texts[i]) for i, row in enumerate(rows)
        ]
        parts.append((caption, sheets))
    height = max(framed_samples[0].height, parts[0][1][0].height)
    lines = [titled(below([standing(tile, height) for tile in framed_samples], gap=0), "sample")]
    lines += [titled(below([standing(row, height) for row in sheets], gap=0), caption) for caption, sheets in parts]
    return save_png(beside(lines, gap=12), path, metadata)


def scatter(
    real: Tensor | npt.NDArray[Any],
    fake: Tensor | npt.NDArray[Any],
    path: Path,
    density: Callable[[npt.NDArray[np.float64]], npt.NDArray[Any]] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write two-dimensional samples: real [n 2] in grey, generated [m 2] in colour.

    The axes depend on ``real`` alone, so that pictures over time have the same ones; how many generated points lie
    outside is said above. ``density``: [m 2] -> [m], the true density up to a factor; its contours hold 50 and 90 %
    of the probability.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data, made = as_array(real).astype(np.float64), as_array(fake).astype(np.float64)
    for points in (data, made):
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"a scatter needs points [n 2], got {list(points.shape)}")
    centre = (data.max(axis=0) + data.min(axis=0)) / 2
    reach = max(float((data.max(axis=0) - data.min(axis=0)).max()) * 0.6, 1e-6)
    inside = np.isfinite(made).all(axis=1) & (np.abs(made - centre) <= reach).all(axis=1)

    figure = Figure(figsize=(5.12, 5.12), dpi=100)
    FigureCanvasAgg(figure)
    # A fixed place: one that makes room for labels and a title would jump from picture to picture of a film.
    axes = figure.add_axes(AXES)
    if density is not None:
        _contours(axes, density, centre, reach)
    axes.scatter(data[:, 0], data[:, 1], s=6, c="0.6", linewidths=0, label="real")
    axes.scatter(made[inside, 0], made[inside, 1], s=6, c="tab:red", alpha=0.7, linewidths=0, label="generated")
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), ylim=(centre[1] - reach, centre[1] + reach), aspect="equal")
    axes.legend(loc="upper right", fontsize="small", markerscale=2)
    if not inside.all():
        axes.set_title(f"{int((~inside).sum())} of {len(made)} generated points lie outside", fontsize="small")
    data_bytes = io.BytesIO()
    text = {key: str(value) for key, value in (metadata or {}).items()}
    figure.savefig(data_bytes, format="png", metadata={"Software": None, **text})
    return write_atomically(path, data_bytes.getvalue())


def film(paths: Sequence[Path], out: Path, *, seconds_per_frame: float = 0.25) -> Path:
    """Write pictures one after the other as an animated ``.gif`` or, without loss of colour, ``.png``/``.apng``.

    The iteration stands below where a picture's text says it; the last picture stays longer. Pictures of several
    sizes are centred on the largest.
    """
    formats = {".gif": "GIF", ".png": "PNG", ".apng": "PNG"}
    if out.suffix.lower() not in formats:
        raise UserError(f"{out}: a film is written as .gif, .png or .apng")
    if not paths:
        raise UserError(f"{out}: there are no pictures to make a film of")
    frames = [_frame(path) for path in paths]
    size = (max(frame.width for frame in frames), max(frame.height for frame in frames))
    canvases = []
    for frame in frames:
        canvas = Image.new("RGB", size, PAPER)
        canvas.paste(frame, ((size[0] - frame.width) // 2, (size[1] - frame.height) // 2))
        canvases.append(canvas)
    step = round(seconds_per_frame * 1000)
    data = io.BytesIO()
    canvases[0].save(
        data,
        format=formats[out.suffix.lower()],
        save_all=True,
        append_images=canvases[1:],
        duration=[step] * (len(canvases) - 1) + [max(step, 1500)],
        loop=0,
    )
    return write_atomically(out, data.getvalue())


def _frame(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            iteration = picture.info.get("iteration")
            frame = picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: not a picture that can be read; leave it out of the film") from error
    return frame if iteration is None else below([frame, text_line(f"iteration {iteration}", frame.width)], gap=0)


def _contours(
    axes: Any,
    density: Callable[[npt.NDArray[np.float64]], npt.NDArray[Any]],
    centre: npt.NDArray[np.float64],
    reach: float,
) -> None:
    side = np.linspace(-reach, reach, 200)
    across, up = np.meshgrid(centre[0] + side, centre[1] + side)
    height = np.asarray(density(np.stack([across.ravel(), up.ravel()], axis=1)), dtype=np.float64).reshape(200, 200)
    # The smallest region that holds a share of the mass is where the density is above some level.
    falling = np.sort(height.ravel())[::-1]
    held = np.cumsum(falling) / falling.sum()
    levels = sorted({float(falling[np.searchsorted(held, share)]) for share in (0.5, 0.9)})
    axes.contour(across, up, height, levels=levels, colors="tab:blue", linewidths=0.8)
