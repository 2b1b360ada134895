"""One image file to uint8 pixels, by fixed rules, or a one-line error with the file's name.

* Orientation from EXIF is applied. Of an animation the first frame counts.
* Transparency is laid over white: ``(a*c + (255 - a)*255) / 255``, rounded.
* 16 bits become 8 by ``round(v / 257)``, so 65535 is 255 and 32768 is 128 (colour TIFF: within one level).
* Floating-point pixels must lie in [0, 1] and become ``round(255 v)``; other ranges are refused, as nothing says what
  they mean. So are 32-bit integers.
* Palette, 1-bit, CMYK and YCbCr become RGB or grey by Pillow's conversion.
* RGB to grey is the luma of ITU-R BT.601, ``0.299 R + 0.587 G + 0.114 B``; grey to RGB repeats the channel.
* Resizing comes last and is antialiased (Pillow; the plain interpolation of torch and OpenCV shifts FID, Parmar et al.,
  arXiv 2104.11222). An image that has the wanted size already is not touched.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from gentrain.data.files import reason
from gentrain.errors import UserError

RULES = 1
"""Version of the rules above, part of every cache key: raise it with any change of pixels."""
PIXEL_LIMIT = 64_000_000
"""Refused before decoding: a file of 10 kB can claim gigabytes."""
SIZES = (8, 16, 32, 64, 128)
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # not EPS: Pillow runs a program for it
_RESIZE = ("crop", "stretch", "none")
_RESAMPLE = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY = {"1", "L", "LA", "La", "I", "F"}
_TRANSPARENT = {"LA", "PA", "RGBA", "La", "RGBa"}
_DEEP = {"RGB;16B", "RGBA;16B", "LA;16B"}
_WHITE = 255


@dataclass(frozen=True)
class Recipe:
    """From the decoded picture to the sample.

    ``resize``: ``crop`` cuts the largest central square first, ``stretch`` ignores the aspect ratio, ``none`` demands
    the wanted size. ``crop`` cuts a central square of that many pixels before all else. ``expect`` is the (width,
    height) every file must have. Raises UserError for values that are not allowed.
    """

    size: int
    channels: int = 3
    resize: str = "crop"
    resample: str = "bicubic"
    crop: int | None = None
    expect: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        one_of("channels", self.channels, (1, 3))
        one_of("resize", self.resize, _RESIZE)
        one_of("resample", self.resample, tuple(_RESAMPLE))
        if self.crop is not None and self.crop < 1:
            raise UserError(f"crop={self.crop}: give a number of pixels from 1 up, or null")

    @property
    def key(self) -> str:
        """All that decides the pixels."""
        return f"rules{RULES} {self!r}"


def one_of(key: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises UserError naming the allowed values."""
    if value not in allowed:
        raise UserError(f"{key}={value} is not possible here; choose from {', '.join(map(str, allowed))}")


def check_size(size: int, native: int | None = None) -> None:
    """Raises UserError unless ``size`` is a power of two from 8 to 128 or the data's own."""
    one_of("size", size, SIZES if native is None else tuple(sorted({*SIZES, native})))


@dataclass(frozen=True)
class Look:
    """What a file says of itself before it is decoded: Pillow's name of its format, whether it is grey, its (width,
    height) in pixels."""

    format: str
    grey: bool
    size: tuple[int, int]


def look(blob: bytes, where: str) -> Look:
    """The head of an image file. Raises UserError that begins with ``where``."""
    with _refusing(blob, where), warnings.catch_warnings(action="ignore"), _open(blob) as image:
        if image.width * image.height > PIXEL_LIMIT:
            raise _too_large(where, f"{image.width}x{image.height}")
        grey = image.mode in _GREY or image.mode.startswith("I;16")
        return Look(str(image.format), grey, image.size)


@contextmanager
def _refusing(blob: bytes, where: str) -> Iterator[None]:
    """Whatever a decoder raises over a file becomes one line about it."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(where, "too many") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: not an image{_looks_like(blob)}; replace or remove it") from error
    except Exception as error:  # decoders raise whatever their format's reader happens to meet
        raise UserError(f"{where}: damaged image ({reason(error)}); replace or remove it") from error


def decode(blob: bytes, where: str, recipe: Recipe) -> NDArray[np.uint8]:
    """uint8 [C size size] from the content of a file. Raises UserError that begins with ``where``."""
    with _refusing(blob, where):
        picture = _oriented(blob, where)
    picture = picture.convert("L" if recipe.channels == 1 else "RGB")
    return planes(fitted(picture, where, recipe))


def planes(picture: Image.Image) -> NDArray[np.uint8]:
    """uint8 [C H W] of a picture in mode L or RGB."""
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def fitted(picture: Image.Image, where: str, recipe: Recipe) -> Image.Image:
    """Cropped and resized to the recipe's size. Raises UserError with both sizes where it does not allow that."""
    width, height = picture.size
    if recipe.expect is not None and picture.size != recipe.expect:
        raise UserError(f"{where}: {width}x{height} pixels, but {recipe.expect[0]}x{recipe.expect[1]} are expected")
    if recipe.crop is not None:
        if recipe.crop > min(width, height):
            raise UserError(f"{where}: {width}x{height} pixels, too small for crop={recipe.crop}; lower crop")
        picture = _centre(picture, recipe.crop)
    wanted = (recipe.size, recipe.size)
    if picture.size == wanted:
        return picture
    if recipe.resize == "none":
        raise UserError(
            f"{where}: {picture.width}x{picture.height} pixels, but size={recipe.size} with resize=none wants "
            f"{recipe.size}x{recipe.size}; set resize=crop or resize=stretch"
        )
    if recipe.resize == "crop":
        picture = _centre(picture, min(picture.size))
    return picture if picture.size == wanted else picture.resize(wanted, _RESAMPLE[recipe.resample])


def _centre(picture: Image.Image, side: int) -> Image.Image:
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _oriented(blob: bytes, where: str) -> Image.Image:
    """Upright, opaque, mode L or RGB."""
    # Pillow's warnings name no file, and our own limits speak plainly.
    with warnings.catch_warnings(action="ignore"), _open(blob) as image:
        if image.width * image.height > PIXEL_LIMIT:
            raise _too_large(where, f"{image.width}x{image.height}")
        raw = _raw_mode(image)
        image.load()
        flat = _from_deep(blob, raw, image) if raw in _DEEP else _flat(image, where)
        turn = _TURNS.get(_orientation(image))  # after load: Pillow turns a TIFF by itself and clears the mark
        return flat if turn is None else flat.transpose(turn)


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # a spoilt EXIF block says nothing about the pixels
        return int(image.getexif().get(0x0112, 1))
    return 1


def _open(blob: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(blob), formats=_FORMATS)


def _too_large(where: str, size: str) -> UserError:
    return UserError(
        f"{where}: {size} pixels, the limit is {PIXEL_LIMIT // 10**6} million; make it smaller or remove it"
    )


def _looks_like(blob: bytes) -> str:
    if not blob:
        return " (empty file)"
    return " (a web page)" if blob[:64].lstrip().startswith(b"<") else ""


def _flat(image: Image.Image, where: str) -> Image.Image:
    """Mode L or RGB without transparency, for any mode that Pillow hands out."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        deep = np.asarray(image).astype(np.int64)  # [H W]
        clear = None if "transparency" not in image.info else deep == image.info["transparency"]
        return Image.fromarray(_whitened(_bytes(deep), clear))
    if image.mode == "I":
        raise UserError(f"{where}: 32-bit integer pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "F":
        unit = np.asarray(image)
        if not np.isfinite(unit).all() or unit.min() < 0 or unit.max() > 1:
            raise UserError(f"{where}: floating-point pixels outside [0, 1]; rescale it, or save it with 8 or 16 bits")
        return Image.fromarray(np.floor(unit * 255.0 + 0.5).astype(np.uint8))
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        return _over_white(np.asarray(image.convert("RGBA")).astype(np.int64))
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _over_white(rgba: NDArray[np.int64]) -> Image.Image:
    colour, alpha = rgba[..., :3], rgba[..., 3:]  # [H W 3], [H W 1]
    return Image.fromarray(((colour * alpha + _WHITE * (255 - alpha) + 127) // 255).astype(np.uint8))


def _bytes(deep: NDArray[np.int64]) -> NDArray[np.uint8]:
    return ((deep + 128) // 257).astype(np.uint8)  # 257 is odd, so no value lies half-way


def _whitened(pixels: NDArray[np.uint8], clear: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    if clear is not None:
        pixels[clear] = _WHITE
    return pixels


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How a PNG's bytes are laid out; Pillow would drop the low byte of 16-bit colour without a word."""
    if image.format != "PNG" or not image.tile:
        return ""
    args: Any = image.tile[0].args
    return args if isinstance(args, str) else str(args[0])


def _from_deep(blob: bytes, raw: str, high: Image.Image) -> Image.Image:
    """A 16-bit colour or grey+alpha PNG, with Pillow unpacking the same bytes twice: as they are, and swapped."""
    if raw == "LA;16B":  # four bytes a pixel: grey high, grey low, alpha high, alpha low
        pair = np.asarray(_unpacked(blob, "RGBA")).astype(np.int64)
        eight = _bytes(pair[..., 0::2] * 256 + pair[..., 1::2])  # [H W 2]
        return _over_white(eight[..., [0, 0, 0, 1]].astype(np.int64))
    low = np.asarray(_unpacked(blob, raw.replace("16B", "16L"))).astype(np.int64)
    deep = np.asarray(high).astype(np.int64) * 256 + low  # [H W 3 or 4]
    eight = _bytes(deep)
    if raw == "RGBA;16B":
        return _over_white(eight.astype(np.int64))
    key = high.info.get("transparency")
    return Image.fromarray(_whitened(eight, None if key is None else (deep == np.array(key)).all(-1)))


def _unpacked(blob: bytes, raw: str) -> Image.Image:
    image = _open(blob)
    image.tile = [image.tile[0]._replace(args=raw)]
    image.load()
    return image
