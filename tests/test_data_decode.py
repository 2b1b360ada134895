"""Pixels of every kind of image file against values worked out by hand, and what happens to files that are none."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures_data import Bytes, deep_png, noise, png_chunk
from numpy.typing import NDArray
from PIL import Image

from gentrain.data.decode import PIXEL_LIMIT, Recipe, decode
from gentrain.errors import UserError

SIDE = 6


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(blob: bytes, channels: int = 3, size: int = SIDE, resize: str = "none") -> Bytes:
    return decode(blob, "x.png", Recipe(size, channels, resize))


def rgb(pixels: Bytes) -> Bytes:
    """[H W 3] or [H W] to [3 H W]."""
    return (pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)).transpose(2, 0, 1)


def over_white(colour: Bytes, alpha: Bytes) -> Bytes:
    share = alpha[..., None] / 255.0
    return np.floor(colour * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def eight(deep: NDArray[np.uint16]) -> Bytes:
    return np.rint(deep / 257.0).astype(np.uint8)


COLOUR, GREY, ALPHA = noise(SIDE, SIDE, 3), noise(SIDE, SIDE, seed=1), noise(SIDE, SIDE, seed=2)
DEEP = np.random.default_rng(3).integers(0, 65536, (SIDE, SIDE, 4), dtype=np.uint16)
DEEP[0, 0], DEEP[0, 1], DEEP[0, 2] = 65535, 255, 129  # one level off each, if the low byte is dropped
LUMA = (COLOUR.astype(int) @ np.array([19595, 38470, 7471]) + 32768) >> 16  # 0.299, 0.587, 0.114 in 1/65536


def palette_image() -> Image.Image:
    image = Image.frombytes("P", (SIDE, SIDE), (GREY % 4).tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 200, 210, 220])
    return image


PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 210, 220]], dtype=np.uint8)[GREY % 4]
CLEAR = np.where((GREY % 4 == 2)[..., None], 255, PALETTE).astype(np.uint8)

KINDS: dict[str, tuple[Callable[[], bytes], Bytes]] = {
    "rgb": (lambda: encoded(Image.fromarray(COLOUR)), COLOUR),
    "grey": (lambda: encoded(Image.fromarray(GREY)), GREY),
    "grey16": (lambda: deep_png(DEEP[..., :1], 0), eight(DEEP[..., 0])),
    "rgb16": (lambda: deep_png(DEEP[..., :3], 2), eight(DEEP[..., :3])),
    "grey16+alpha": (
        lambda: deep_png(DEEP[..., :2], 4),
        over_white(eight(DEEP[..., [0, 0, 0]]), eight(DEEP[..., 1])),
    ),
    "rgba16": (lambda: deep_png(DEEP, 6), over_white(eight(DEEP[..., :3]), eight(DEEP[..., 3]))),
    "grey16 tRNS": (
        lambda: deep_png(DEEP[..., :1], 0, png_chunk(b"tRNS", struct.pack(">H", int(DEEP[2, 2, 0])))),
        np.where(DEEP[..., 0] == DEEP[2, 2, 0], 255, eight(DEEP[..., 0])).astype(np.uint8),
    ),
    "rgb16 tRNS": (
        lambda: deep_png(DEEP[..., :3], 2, png_chunk(b"tRNS", struct.pack(">3H", *DEEP[2, 2, :3].tolist()))),
        np.where((DEEP[..., :3] == DEEP[2, 2, :3]).all(-1)[..., None], 255, eight(DEEP[..., :3])).astype(np.uint8),
    ),
    "float tiff": (
        lambda: encoded(Image.fromarray((GREY.clip(1, 254) + 0.4 * (-1.0) ** GREY).astype(np.float32) / 255), "TIFF"),
        GREY.clip(1, 254),
    ),
    "one bit": (lambda: encoded(Image.fromarray(GREY > 127)), ((GREY > 127) * 255).astype(np.uint8)),
    "palette": (lambda: encoded(palette_image()), PALETTE),
    "palette with a clear entry": (lambda: encoded(palette_image(), transparency=2), CLEAR),
    "LA": (
        lambda: encoded(Image.fromarray(np.stack((GREY, ALPHA), 2))),
        over_white(rgb(GREY).transpose(1, 2, 0), ALPHA),
    ),
    "RGBA": (lambda: encoded(Image.fromarray(np.dstack((COLOUR, ALPHA)))), over_white(COLOUR, ALPHA)),
    "animation": (
        lambda: encoded(palette_image(), "GIF", save_all=True, append_images=[Image.new("P", (SIDE, SIDE), 3)]),
        PALETTE,
    ),
    "bmp": (lambda: encoded(Image.fromarray(COLOUR), "BMP"), COLOUR),
    "ppm": (lambda: encoded(Image.fromarray(COLOUR), "PPM"), COLOUR),
    "webp": (lambda: encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_exact(kind: str) -> None:
    make, expected = KINDS[kind]
    assert np.array_equal(decoded(make()), rgb(expected))


@pytest.mark.parametrize("kind", ["rgb", "grey", "grey16", "rgba16", "one bit"])
def test_grey_is_the_luma(kind: str) -> None:
    make, expected = KINDS[kind]
    weights = np.array([19595, 38470, 7471])
    luma = (rgb(expected).transpose(1, 2, 0).astype(int) @ weights + 32768) >> 16
    assert np.array_equal(decoded(make(), channels=1)[0], luma)
    assert np.abs(luma - rgb(expected).transpose(1, 2, 0) @ [0.299, 0.587, 0.114]).max() < 0.51


def test_first_picture_of_a_stereo_jpeg() -> None:
    first, second = Image.fromarray(COLOUR), Image.new("RGB", (SIDE, SIDE))
    blob = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(decoded(blob), rgb(np.asarray(Image.open(io.BytesIO(encoded(first, "JPEG"))))))


def test_cmyk_corners() -> None:
    inks = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    inks[0, :, 3], inks[1, :, 0], inks[2, :, 1], inks[3, :, 2] = 255, 255, 255, 255
    expected = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    expected[0], expected[1, :, 0], expected[2, :, 1], expected[3, :, 2] = 0, 0, 0, 0
    assert np.array_equal(
        decoded(encoded(Image.frombytes("CMYK", (SIDE, SIDE), inks.tobytes()), "TIFF")), rgb(expected)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_exif(orientation: int, kind: str) -> None:
    upright = noise(SIDE, 4, 3)
    # What is stored, when the camera was held so that `orientation` brings the picture upright (EXIF 2.3, table 6).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    blob = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    expected = rgb(upright)[:, 1:5]  # the central square
    assert np.array_equal(decoded(blob, size=4, resize="crop"), expected)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(width: int, height: int) -> None:
    blob = encoded(Image.new("RGB", (width, height), (5, 6, 7)))
    for resize in ("crop", "stretch"):
        assert np.array_equal(decoded(blob, size=8, resize=resize), rgb(np.full((8, 8, 3), (5, 6, 7), dtype=np.uint8)))


class TestGeometry:
    def test_crop_is_central(self) -> None:
        pixels = noise(218, 178, 3)
        out = decode(encoded(Image.fromarray(pixels)), "x", Recipe(140, 3, crop=140))
        assert np.array_equal(out, rgb(pixels[39:179, 19:159]))

    def test_crop_keeps_the_ratio_and_stretch_does_not(self) -> None:
        wide = np.zeros((8, 24, 3), dtype=np.uint8)
        wide[:, 8:16] = 255  # the central square is white
        blob = encoded(Image.fromarray(wide))
        assert decoded(blob, size=8, resize="crop").min() == 255
        assert decoded(blob, size=8, resize="stretch").min() == 0

    @pytest.mark.parametrize("resample", ["box", "bilinear", "bicubic", "lanczos"])
    def test_shrinking_averages(self, resample: str) -> None:
        board = np.indices((64, 64)).sum(0) % 2 * 255  # plain interpolation would pick single squares of it
        blob = encoded(Image.fromarray(board.astype(np.uint8)))
        out = decode(blob, "x", Recipe(8, 1, resample=resample))
        assert np.abs(out[0, 2:-2, 2:-2].astype(int) - 127.5).max() < 8

    def test_wanted_size_is_not_touched(self) -> None:
        assert np.array_equal(decoded(encoded(Image.fromarray(COLOUR)), resize="stretch"), rgb(COLOUR))

    def test_mixed_sizes_are_refused_with_both(self) -> None:
        with pytest.raises(UserError, match=r"x\.png: 6x4 pixels.*wants 8x8"):
            decoded(encoded(Image.new("RGB", (6, 4))), size=8)
        with pytest.raises(UserError, match=r"x: 6x4 pixels.*crop=5"):
            decode(encoded(Image.new("RGB", (6, 4))), "x", Recipe(8, crop=5))
        with pytest.raises(UserError, match=r"x: 6x4 pixels, but 178x218"):
            decode(encoded(Image.new("RGB", (6, 4))), "x", Recipe(8, expect=(178, 218)))

    @pytest.mark.parametrize("keys", [{"channels": 2}, {"resize": "pad"}, {"resample": "cubic"}, {"crop": 0}])
    def test_wrong_keys_are_refused(self, keys: dict[str, object]) -> None:
        with pytest.raises(UserError, match=next(iter(keys))):
            Recipe(8, **keys)  # type: ignore[arg-type]


def one_line(blob: bytes) -> str:
    with pytest.raises(UserError) as caught:
        decode(blob, "photos/bad.png", Recipe(8))
    message = str(caught.value)
    assert message.startswith("photos/bad.png: ")
    assert "\n" not in message
    return message


class TestBadFiles:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
    def test_truncated(self, kind: str, share: float) -> None:
        blob = encoded(Image.fromarray(noise(64, 64, 3)), kind)
        one_line(blob[: int(len(blob) * share)])

    def test_not_an_image(self) -> None:
        assert "empty file" in one_line(b"")
        assert "web page" in one_line(b"<!DOCTYPE html><html></html>")
        assert "not an image" in one_line(b"hello")
        assert "not an image" in one_line(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")

    @pytest.mark.parametrize("side", [9000, 14_000, 60_000])
    def test_bomb_is_refused_before_it_is_unpacked(self, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        blob = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
        assert "the limit is 64 million" in one_line(blob)

    def test_just_below_the_limit_passes(self) -> None:
        blob = encoded(Image.new("1", (8000, PIXEL_LIMIT // 8000)))
        assert decoded(blob, channels=1, size=8, resize="crop").max() == 0

    @pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
    def test_floats_without_a_known_range(self, value: float) -> None:
        pixels = np.full((8, 8), 0.5, dtype=np.float32)
        pixels[3, 3] = value
        assert "outside [0, 1]" in one_line(encoded(Image.fromarray(pixels), "TIFF"))

    def test_wide_integers(self) -> None:
        assert "32-bit" in one_line(encoded(Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)), "TIFF"))

    def test_spoilt_exif_is_ignored(self) -> None:
        blob = encoded(Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert np.array_equal(decoded(blob), rgb(COLOUR))


def test_deep_images_differ_from_a_dropped_byte(tmp_path: Path) -> None:
    """The negative twin of the 16-bit cases: Pillow's own reading is not what they ask for."""
    path = tmp_path / "deep.png"
    path.write_bytes(deep_png(DEEP[..., :3], 2))
    assert not np.array_equal(np.asarray(Image.open(path)), eight(DEEP[..., :3]))
