"""Images, folders and lists that are broken, odd or no longer the same, through the command line."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Count, Outcome, Run
from fixtures_data import celeba_set, deep_png, idx_bytes, idx_set, noise, png_chunk, save
from judge import lines, refused, timed
from PIL import Image

from gentrain.data.decode import PIXEL_LIMIT

MODEL = ("model=dcgan", "size=tiny", "trainer=cpu", "trainer.threads=1", "metrics=none", "train.batch_size=2")
FOLDER = (*MODEL, "data=folder", "data.size=8")
LOSSLESS = ("PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM")


@pytest.fixture
def home(workplace: Path) -> Path:
    """Six good images, two of them to test."""
    for place in ("train/1.png", "train/2.png", "train/3.png", "train/4.png", "test/5.png", "test/6.png"):
        save(workplace / "pictures" / place, noise(12, 10, 3, seed=int(place[-5])))
    return workplace / "pictures"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(24, 20, 3, seed=seed))


def huge_png(side: int) -> bytes:
    """A PNG of side x side black pixels, truly that many: 8 kB for 64 million."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packed = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def swollen_comment() -> bytes:
    """A PNG whose 100 kB of text unpack to 100 MB."""
    blob = encoded(picture())
    header = len(b"\x89PNG\r\n\x1a\n") + 25
    return blob[:header] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20))) + blob[header:]


def check(run: Run, home: Path, *more: str) -> Outcome:
    return timed(run, "check", *FOLDER, f"data.root={home}", *more)


def names_it(ended: Outcome, name: str) -> bool:
    """Exit code 2, one line with the file's name, then the count."""
    told = lines(ended)
    assert "Traceback" not in ended.err
    return ended.code == 2 and len(told) == 2 and name in told[0] and told[1] == "gentrain: 1 bad file"


def broken(generator: random.Random) -> tuple[str, bytes]:
    """A file that is no image, or not a whole one, and the ending of its name."""
    kind = generator.choice((*LOSSLESS, "JPEG", "PNG", "PNG"))
    blob = encoded(picture(generator.randrange(99)), kind)
    how = generator.choice(("cut", "cut", "cut", "flip", "empty", "text", "page", "noise", "other"))
    if how == "cut":
        blob = blob[: generator.randrange(1, int(len(blob) * 0.9))]
    elif how == "flip":  # only PNG has checksums that see every flip of a pixel
        kind, blob = "PNG", encoded(picture(generator.randrange(99)))
        place = generator.randrange(blob.index(b"IDAT") + 8, len(blob) - 24)
        blob = blob[:place] + bytes([blob[place] ^ 1 << generator.randrange(8)]) + blob[place + 1 :]
    else:
        blob = {
            "empty": b"",
            "text": b"no picture\n" * generator.randrange(1, 50),
            "page": b"\n<!DOCTYPE html><html><body>404</body></html>",
            "noise": generator.randbytes(generator.randrange(1, 5000)),
            "other": generator.choice(
                (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"PK\3\4" + bytes(50))
            ),
        }[how]
    ending = generator.choice((".png", ".PNG", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".webp", ".ppm"))
    return ending, blob


def test_broken_files_are_named_by_check(run: Run, home: Path, count: Count) -> None:
    generator, wanted, survived = random.Random(41), count.of(12, 120), 0
    assert check(run, home).code == 0, "the same folder without the fault is good"
    for number in range(wanted):
        ending, blob = broken(generator)
        bad = home / generator.choice(("train", "test")) / f"b{number}{ending}"
        bad.write_bytes(blob)
        ended = check(run, home, f"data.cache={generator.choice(('true', 'false'))}")
        assert names_it(ended, bad.name), (ended, blob[:40])
        survived += 1
        bad.unlink()
    assert check(run, home).code == 0
    count.says(injected=wanted, fired=wanted, survived=survived)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_check_lists_all_bad_files_and_train_stops_at_the_first(
    cache: str, run: Run, home: Path, workplace: Path
) -> None:
    for number in range(30):
        (home / ("train" if number % 2 else "test") / f"bad{number:02d}.png").write_text("x" * number)
    (home / "train" / "gone.png").symlink_to("nowhere.png")
    ended = check(run, home, f"data.cache={cache}")
    told = lines(ended)
    assert ended.code == 2
    assert len(told) == 21
    assert told[-1] == "gentrain: and 11 more: 31 bad files"
    assert len({line.split(": ")[1] for line in told[:-1]}) == 20, "each line names another file"
    ended = run(*FOLDER, f"data.root={home}", f"data.cache={cache}", "name=run", "train.iterations=9")
    refused(ended, ".png: ")
    assert not (workplace / "outputs").exists() or not list((workplace / "outputs").rglob("*.ckpt"))
    for bad in [*home.rglob("bad*"), home / "train" / "gone.png"]:
        bad.unlink()
    assert check(run, home, f"data.cache={cache}").code == 0


def test_check_lists_with_several_processes(run: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gentrain.data import pool

    monkeypatch.setattr(pool, "PARALLEL_FROM", 2)
    monkeypatch.setattr(pool, "CHUNK", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    for number in range(7):
        (home / "train" / f"bad{number}.png").write_text("no picture")
    told = lines(check(run, home))
    assert [Path(line.split(": ")[1]).name for line in told[:-1]] == [f"bad{n}.png" for n in range(7)]


def test_check_lists_bad_images_of_celeba(run: Run, workplace: Path) -> None:
    celeba_set(workplace / "data" / "celeba", (0, 0, 0, 0, 1, 2, 2))
    words = ("check", *MODEL, "data=celeba", "data.size=8")
    assert run(*words).code == 0
    images = workplace / "data" / "celeba" / "img_align_celeba"
    (images / "000002.jpg").write_text("")
    (images / "000006.jpg").write_bytes((images / "000006.jpg").read_bytes()[:500])
    told = lines(run(*words))
    assert ["000002.jpg" in told[0], "000006.jpg" in told[1], told[2]] == [True, True, "gentrain: 2 bad files"]


def exif(orientation: int) -> bytes:
    marks = Image.Exif()
    marks[0x0112] = orientation
    return encoded(picture(), "JPEG", exif=marks)


def bits(mode: str, **options: object) -> bytes:
    return encoded(picture().convert(mode), **options)


GREY, ALPHA = noise(9, 9), noise(9, 9, seed=1)
DEEP = np.random.default_rng(3).integers(0, 65536, (9, 9, 4), dtype=np.uint16)
FRAMES = [Image.new("RGB", (9, 9), (k * 80, 0, 0)) for k in range(3)]
ODD: dict[str, Callable[[], bytes]] = {
    "grey16.png": lambda: deep_png(DEEP[..., :1], 0),
    "grey16-alpha.png": lambda: deep_png(DEEP[..., :2], 4),
    "rgb16.png": lambda: deep_png(DEEP[..., :3], 2),
    "rgba16.png": lambda: deep_png(DEEP, 6),
    "float.tif": lambda: encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
    "bit.png": lambda: bits("1"),
    "bit.tif": lambda: bits("1", kind="TIFF"),
    "palette.png": lambda: bits("P"),
    "palette.gif": lambda: bits("P", kind="GIF"),
    "clear.png": lambda: bits("P", transparency=3),
    "la.png": lambda: bits("LA"),
    "rgba.png": lambda: bits("RGBA"),
    "rgba.webp": lambda: bits("RGBA", kind="WEBP"),
    "cmyk.jpg": lambda: bits("CMYK", kind="JPEG"),
    "ycbcr.jpg": lambda: bits("YCbCr", kind="JPEG"),
    "progressive.jpg": lambda: encoded(picture(), "JPEG", progressive=True),
    "lab.tif": lambda: bits("LAB", kind="TIFF"),
    "animated.gif": lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "animated.webp": lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    "animated.png": lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "pages.tif": lambda: encoded(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
    "one.png": lambda: encoded(Image.new("RGB", (1, 1), (9, 8, 7))),
    "tall.png": lambda: encoded(Image.new("RGB", (1, 10_000), (9, 8, 7))),
    "wide.png": lambda: encoded(Image.new("RGB", (10_000, 1), (9, 8, 7))),
    "mine.pgm": lambda: encoded(Image.fromarray(GREY), "PPM"),
    "mine.pbm": lambda: bits("1", kind="PPM"),
    "wrongly-named.gif": lambda: encoded(picture(), "PNG"),
    "with a tail.png": lambda: encoded(picture()) + b"more" * 99,
    "comment.png": lambda: encoded(picture()).replace(
        png_chunk(b"IEND", b""), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000))) + png_chunk(b"IEND", b"")
    ),
} | {f"turned{k}.jpg": (lambda k=k: exif(k)) for k in range(1, 10)}


def test_odd_images_are_converted_and_trained_on(run: Run, home: Path, count: Count) -> None:
    names = list(ODD)[:: 1 if count.of(0, 1) else 3]
    for name in names:
        (home / "train" / name).write_bytes(ODD[name]())
        ended = check(run, home)
        assert ended.code == 0, (name, ended.err)
    with Image.open(home / "train" / "grey16.png") as deep:
        assert deep.mode.startswith("I"), "the fault is one: Pillow's own conversion would saturate"
    ended = run(*FOLDER, f"data.root={home}", "name=run", "train.iterations=3", "data.cache=false")
    assert ended.code == 0, ended.err
    count.says(injected=len(names), fired=len(names), survived=len(names))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "int32.tif": (lambda: encoded(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"), "32-bit"),
    "bright.tif": (lambda: encoded(Image.fromarray(np.full((9, 9), 3, np.float32)), "TIFF"), "outside [0, 1]"),
    "nan.tif": (lambda: encoded(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), "outside [0, 1]"),
    "bomb9000.png": (lambda: huge_png(9000), "64 million"),
    "bomb14000.png": (lambda: huge_png(14_000), "64 million"),
    "bomb12000.png": (lambda: huge_png(12_000), "64 million"),
    "lies.png": (
        lambda: encoded(picture()).replace(struct.pack(">II", 20, 24), struct.pack(">II", 60_000, 60_000)),
        "not an image",  # the header's checksum no longer fits
    ),
    "nowhere.bmp": (
        lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        "",
    ),
    "many.gif": (lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", ""),
    "comment.png": (lambda: swollen_comment(), ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name: str, run: Run, home: Path) -> None:
    make, fragment = REFUSED[name]
    (home / "test" / name).write_bytes(make())
    ended = check(run, home)
    assert names_it(ended, name), ended
    assert fragment in ended.err


def test_a_picture_just_below_the_limit_is_taken(run: Run, home: Path) -> None:
    (home / "test" / "large.png").write_bytes(huge_png(int(PIXEL_LIMIT**0.5)))
    assert check(run, home).code == 0


def sparse(path: Path) -> None:
    with path.open("wb") as out:
        out.truncate(1 << 40)


def bound(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": bound,
    "huge": sparse,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "itself": lambda path: path.symlink_to(path.name),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/ptmx"),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("cache", ["true", "false"])
def test_names_behind_which_no_file_can_be_read(kind: str, cache: str, run: Run, home: Path) -> None:
    bad = home / "train" / f"{kind}.png"
    NO_FILES[kind](bad)
    ended = check(run, home, f"data.cache={cache}")
    assert names_it(ended, bad.name), ended
    bad.unlink()
    assert check(run, home, f"data.cache={cache}").code == 0


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda home: home.rename(home.with_name("gone")), "no such folder"),
    "a file": (lambda home: (home.rename(home.with_name("gone")), home.write_text("")), "no such folder"),
    "no images": (lambda home: [p.rename(p.with_suffix(".txt")) for p in home.rglob("*.png")], "no images"),
    "test split empty": (lambda home: [p.unlink() for p in (home / "test").iterdir()], "no images"),
    "a loop of links": (
        lambda home: (home.rename(home.with_name("gone")), home.symlink_to(home.name)),
        "no such folder",
    ),
    "loose beside classes": (lambda home: save(home / "train" / "cats" / "9.png", noise(9, 9, 3)), "beside class"),
    "a class to test only": (
        lambda home: [
            save(home / "train" / "cats" / "9.png", noise(9, 9, 3)),
            save(home / "test" / "dogs" / "9.png", noise(9, 9, 3)),
            *[p.unlink() for p in [*home.glob("train/*.png"), *home.glob("test/*.png")]],
        ],
        "dogs/9.png",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_are_none(kind: str, run: Run, home: Path, workplace: Path) -> None:
    assert check(run, home).code == 0
    spoil, fragment = FOLDERS[kind]
    spoil(home)
    for word in (("check",), ()):
        refused(timed(run, *word, *FOLDER, f"data.root={home}", "name=run"), fragment)
    assert not list(workplace.glob("outputs/**/*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_and_files_without_permission(run: Run, home: Path) -> None:
    (home / "train" / "1.png").chmod(0)
    assert names_it(check(run, home), "1.png")
    (home / "train" / "1.png").chmod(0o644)
    (home / "train").chmod(0)
    refused(check(run, home), "train")
    (home / "train").chmod(0o755)
    assert check(run, home).code == 0


LISTS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "a line too few": ("list_attr_celeba.txt", lambda text: text.rsplit("\n", 2)[0] + "\n", "announces"),
    "a line twice": (
        "list_attr_celeba.txt",
        lambda text: text.replace("000002.jpg", "000001.jpg"),
        "stand in it twice",
    ),
    "an image that is not there": (
        "list_attr_celeba.txt",
        lambda text: text.replace("000002.jpg", "999999.jpg"),
        "999999.jpg",
    ),
    "a path": ("list_attr_celeba.txt", lambda text: text.replace("000002.jpg", "../../secret.jpg"), "secret.jpg"),
    "a value missing": ("list_attr_celeba.txt", lambda text: text[: text.rindex("1")].rstrip(" -") + "\n", "line 9"),
    "a label out of range": (
        "list_attr_celeba.txt",
        lambda text: text.replace("000003.jpg 1", "000003.jpg 2").replace("000003.jpg -1", "000003.jpg 2"),
        "line 5",
    ),
    "no number": ("list_attr_celeba.txt", lambda text: "²" + text[1:], "line 1"),
    "a number without end": ("list_attr_celeba.txt", lambda text: "7" * 5000 + text[1:], "announces"),
    "a web page": ("list_attr_celeba.txt", lambda _: "<html>\n<body>\n404</body>\n", "line 1"),
    "nothing": ("list_attr_celeba.txt", lambda _: "", "line 1"),
    "a split too few": ("list_eval_partition.txt", lambda text: text.rsplit("\n", 2)[0] + "\n", "000007.jpg"),
    "a split too many": ("list_eval_partition.txt", lambda text: text + "000008.jpg 0\n", "000008.jpg"),
    "a split out of range": ("list_eval_partition.txt", lambda text: text.replace("2.jpg 0", "2.jpg 3"), "line 2"),
    "a split as text": ("list_eval_partition.txt", lambda text: text.replace("2.jpg 0", "2.jpg train"), "line 2"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_do_not_fit_the_images(kind: str, run: Run, workplace: Path) -> None:
    celeba_set(workplace / "data" / "celeba", (0, 0, 0, 0, 1, 2, 2))
    words = ("check", *MODEL, "data=celeba", "data.size=8")
    assert run(*words).code == 0
    name, spoil, fragment = LISTS[kind]
    path = workplace / "data" / "celeba" / name
    before = path.read_text()
    path.write_text(spoil(before))
    assert path.read_text() != before
    refused(timed(run, *words), fragment)


LABELS: dict[str, tuple[bytes, str]] = {
    "too few": (idx_bytes(np.zeros(29, np.uint8)), "do not belong together"),
    "too many": (idx_bytes(np.zeros(31, np.uint8)), "do not belong together"),
    "out of range": (idx_bytes(np.full(30, 10, np.uint8)), "label 10"),
    "images in their place": (idx_bytes(noise(30, 28, 28)), "do not belong together"),
    "more announced than there": (idx_bytes(np.zeros(30, np.uint8))[:-1], "announced"),
    "a negative count": (b"\0\0\x08\1" + struct.pack(">i", -30) + bytes(30), "announced"),
    "counts that wrap around": (b"\0\0\x08\3" + struct.pack(">iii", -1, -1, 30) + bytes(30), "announced"),
    "an unknown type": (b"\0\0\x0d\1" + struct.pack(">i", 30) + bytes(120), "not an IDX file"),
    "a bomb": (b"\0\0\x08\1" + struct.pack(">i", 30) + bytes(300 << 20), "unpacks to more"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_do_not_fit_the_images(kind: str, run: Run, workplace: Path) -> None:
    idx_set(workplace / "data" / "mnist")
    words = ("check", *MODEL, "data=mnist", "data.size=8", "data.download=false")
    assert run(*words).code == 0
    blob, fragment = LABELS[kind]
    (workplace / "data" / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(blob, 1))
    refused(timed(run, *words), fragment, "train-labels-idx1-ubyte.gz")


ODD_NAMES = (
    "a b.png", " .png", "ä漢字🙂.png", "a\nb.png", "a\r\x1b[31mred.png", "-rf.png", "$(touch canary).png", "`id`.png",
    "'\".png", "a;b|c&d.png", "%s%n.png", "{0}.png", "..png", "a..png", "con.png", "x" * 240 + ".png", "A.PNG", "a.png",
    "\\.png", "#.png", "a.png.png", "~.png", "*.png", "[a].png",
)  # fmt: skip


def test_odd_names_work_or_stay_on_one_line(run: Run, home: Path, workplace: Path, count: Count) -> None:
    raw = [*ODD_NAMES, os.fsdecode(b"\xff\xfe.png")]
    for number, name in enumerate(raw):
        (home / "train" / name).write_bytes(encoded(picture(number)))
    assert sum(path.is_file() for path in (home / "train").iterdir()) == 4 + len(raw)
    ended = check(run, home)
    assert ended.code == 0, ended.err
    visible = len([name for name in raw if not name.startswith(".")])
    assert f"good: {' '.join(FOLDER)} data.root={home}: {4 + visible} training samples" in ended.out
    for name in raw[: count.of(8, len(raw))]:
        (home / "train" / name).write_text("no picture")
        told = lines(check(run, home))
        if not name.startswith("."):
            assert len(told) == 2, told
            assert "\x1b" not in told[0], "no name may steer the terminal"
        (home / "train" / name).unlink()
    assert not (workplace / "canary").exists()


def test_folder_names_and_loops_of_links(run: Run, home: Path) -> None:
    good = encoded(picture())
    root = home.with_name("a b\tä'$(x)")
    for name in ("cats\n", "🐕", "-x"):
        (root / name / "deep.png").mkdir(parents=True)
        for number in range(12):
            (root / name / "deep.png" / f"{number}.png").write_bytes(good)
    (root / "-x" / "up").symlink_to(root)
    (root / "-x" / "loop").symlink_to("loop")
    (root / "🐕" / "twin").symlink_to(root / "-x")
    quoted = str(root).replace("\\", "\\\\").replace("'", "\\'")
    words = ("check", *FOLDER, f"data.root='{quoted}'")
    ended = timed(run, *words)
    assert ended.code == 0, ended.err
    here = Path.cwd()
    os.chdir(root / "-x")
    for _ in range(1500):  # more than functions may call each other
        Path("d").mkdir()
        os.chdir("d")
    Path("bad.png").write_text("no picture")
    os.chdir(here)
    ended = timed(run, *words)
    for depth in (1000, 500, 0):  # nor does whoever clears up after the tests go so deep
        os.chdir(root / "-x" / "/".join(["d"] * depth))
        shutil.rmtree("d")
    os.chdir(here)
    assert names_it(ended, "/d/d/bad.png"), ended.err[:300]


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda _: None, True),
    "touched": (lambda home: [os.utime(path, (1, 1)) for path in home.rglob("*.png")], True),
    "added": (lambda home: save(home / "train" / "9.png", noise(12, 10, 3)), False),
    "removed": (lambda home: (home / "train" / "2.png").unlink(), False),
    "renamed": (lambda home: (home / "train" / "2.png").rename(home / "train" / "22.png"), False),
    "changed": (lambda home: save(home / "train" / "2.png", noise(12, 10, 3, seed=77)), False),
    "one pixel of a test image": (lambda home: _one_pixel(home / "test" / "5.png"), False),
    "moved to the test split": (lambda home: (home / "train" / "2.png").rename(home / "test" / "2.png"), False),
    "gone": (lambda home: home.rename(home.with_name("gone")), False),
}


def _one_pixel(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0, 0] ^= 1
    save(path, pixels)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_data_that_changed_are_refused_by_resume(
    cache: str, run: Run, home: Path, workplace: Path, count: Count
) -> None:
    words = (*FOLDER, f"data.root={home}", f"data.cache={cache}", "train.iterations=4", "train.checkpoint_every=2")
    folder = workplace / "outputs" / "run"
    chosen = list(CHANGES) if count.of(0, 1) or cache == "true" else ["nothing", "changed"]
    trained = run(*words, "name=run", "train.validate_every=0")
    assert trained.code == 0, trained.err
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["system"]
    (folder / "checkpoints" / "iteration-000000004.ckpt").unlink()
    kept = {path: path.read_bytes() for path in [*home.rglob("*.png"), *folder.rglob("*")] if path.is_file()}
    for kind in chosen:
        restore(home, kept)
        card = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**card, "status": "stopped"}))
        change, allowed = CHANGES[kind]
        change(home)
        ended = timed(run, "resume", "run=outputs/run")
        if allowed:
            assert ended.code == 0, (kind, ended)
            again = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["system"]
            assert str(again) == str(weights), "it went on as if nothing had been"
        else:
            refused(ended, "no longer those" if kind != "gone" else "no such folder")
            assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    count.says(injected=len(chosen), fired=len(chosen), survived=len(chosen))


def restore(home: Path, kept: dict[Path, bytes]) -> None:
    if home.with_name("gone").exists():
        home.with_name("gone").rename(home)
    for path in home.rglob("*.png"):
        path.unlink()
    for folder in {path.parent for path in kept}:
        for path in folder.glob("*.ckpt"):
            path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)
