"""Files that would run code, escape, swell or lie, given to every command that reads them: nothing of theirs runs."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import logging
import operator
import os
import pickle
import random
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import threading
import timeit
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Count, Run, words
from fixtures_data import celeba_set, cifar_batches, cifar_binary, idx_set
from judge import everything_below, lines, plain, refused, stands_nowhere, timed

from gentrain.data import cifar, files, idx
from gentrain.engine.checkpoint import MARK, _signed
from gentrain.errors import UserError

CANARY = "canary"
READERS = ("sample", "evaluate", "resume")


@pytest.fixture
def trained(run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that could go on, with three good checkpoints, and a module on the path that must never be imported."""
    ended = run(*words("model=dcgan", "name=run", "train.iterations=4", "train.batch_size=8", "metrics=domain"))
    assert ended.code == 0, ended.err
    (workplace / "evil.py").write_text(
        f"open({str(workplace / CANARY)!r}, 'w').close()\nclass Net:\n    pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(workplace))
    for command in READERS:
        assert run(command, "run=outputs/run").code == 0, "the same folder is accepted without an attack"
    return workplace / "outputs" / "run"


def unfinished(folder: Path) -> None:
    card = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**card, "status": "stopped"}))


class Gadget:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., object], *given: object) -> None:
        self.call = (function, given)

    def __reduce__(self) -> Any:
        return self.call


def gadgets(canary: Path) -> dict[str, Gadget]:
    name, write = str(canary), f"open({str(canary)!r}, 'w').close()"
    script = canary.with_name("script.py")
    script.write_text(write)
    inner = pickle.dumps(Gadget(os.system, f"touch {name}"))
    buffer = io.BytesIO()
    torch.save(Gadget(os.system, f"touch {name}"), buffer)
    return {
        "system": Gadget(os.system, f"touch {name}"),
        "popen": Gadget(subprocess.check_call, ["touch", name]),
        "eval": Gadget(builtins.eval, f"open({name!r}, 'w')"),
        "exec": Gadget(builtins.exec, write),
        "open": Gadget(builtins.open, name, "w"),
        "codecs": Gadget(codecs.open, name, "w"),
        "method": Gadget(operator.methodcaller("touch"), canary),
        "partial": Gadget(functools.partial(os.system, f"touch {name}")),
        "copy": Gadget(shutil.copyfile, str(script), name),
        "script": Gadget(runpy.run_path, str(script)),
        "timeit": Gadget(timeit.timeit, write, "pass", timeit.default_timer, 1),
        "log": Gadget(logging.FileHandler, name),
        "zip": Gadget(zipfile.ZipFile, name, "w"),
        "map": Gadget(np.memmap, name, np.uint8, "w+", 0, (1,)),
        "pickle in pickle": Gadget(pickle.loads, inner),
        "torch in pickle": Gadget(torch.storage._load_from_bytes, buffer.getvalue()),
        "link": Gadget(os.symlink, str(script), name),
        "folder": Gadget(os.mkdir, name),
    }


def marked(blob: bytes) -> bytes:
    """With a checksum that fits, as if this program had written it."""
    if blob[-22:-18] == b"PK\5\6":
        return _signed(blob)
    return blob + MARK + hashlib.sha256(blob).hexdigest().encode()


def in_torch(state: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


class Hooked:
    """A tensor whose rebuilding takes the gadget along."""

    def __init__(self, gadget: object) -> None:
        self.gadget = gadget

    def __reduce__(self) -> Any:
        storage = torch.zeros(2).untyped_storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (2,), (1,), False, self.gadget)


def wrappings(gadget: Gadget, good: dict[str, Any]) -> dict[str, bytes]:
    return {
        **{f"protocol {k}": pickle.dumps({**plain_part(good), "more": gadget}, protocol=k) for k in range(6)},
        "top": in_torch(gadget),
        "nested": in_torch({**good, "more": [{"a": (gadget,)}]}),
        "among weights": in_torch({**good, "system": {**good["system"], "nets": {"generator": gadget}}}),
        "old format": in_torch({**plain_part(good), "more": gadget}, _use_new_zipfile_serialization=False),
        "in a tensor": in_torch({**good, "more": Hooked(gadget)}),
        "in a list": in_torch([gadget, good]),
    }


def plain_part(good: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in good.items() if isinstance(value, (int, str, float))}


def test_pickles_run_nothing(run: Run, trained: Path, workplace: Path, count: Count) -> None:
    canary = workplace / CANARY
    good = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    chosen = list(gadgets(canary).items())
    kinds = list(wrappings(Gadget(print), good))
    cases = [(chosen[k % len(chosen)][0], kinds[(k + k // len(chosen)) % len(kinds)]) for k in range(count.of(18, 126))]
    assert {name for name, _ in cases} == set(dict(chosen))
    assert {kind for _, kind in cases} == set(kinds)
    fired = survived = 0
    for number, (name, kind) in enumerate(cases):
        blob = wrappings(gadgets(canary)[name], good)[kind]
        for path in trained.glob("checkpoints/*.ckpt"):
            path.unlink()
            path.write_bytes(marked(blob) if number % 4 else blob)
        unfinished(trained)
        for command in READERS:
            refused(timed(run, command, "run=outputs/run"))
            assert not canary.exists(), (name, kind, command)
        survived += 1
        assert _works(blob, canary, kind), (name, kind)
        fired += 1
    count.says(injected=len(cases), fired=fired, survived=survived)


def _works(blob: bytes, canary: Path, kind: str) -> bool:
    """Whether the attack is a real one: loaded without care it leaves its canary, which is removed."""
    try:
        loaded = pickle.loads(blob) if "protocol" in kind else torch.load(io.BytesIO(blob), weights_only=False)
        del loaded
    except Exception:
        pass  # some call, then fall over what the call returned
    there = canary.exists() or canary.is_symlink()
    if canary.is_dir():
        canary.rmdir()
    else:
        canary.unlink(missing_ok=True)
    return there


TARGETS = (
    "evil.Net", "evil", "os.system", "posix.system", "subprocess.run", "subprocess.Popen", "builtins.eval",
    "builtins.exec", "builtins.open", "pickle.loads", "runpy.run_path", "importlib.import_module", "shutil.rmtree",
    "os.remove", "yaml.unsafe_load", "timeit.timeit", "ctypes.CDLL", "code.interact", "torch.hub.load", "torch.load",
    "torch.utils.cpp_extension.load", "numpy.load", "numpy.testing.runstring", "urllib.request.urlopen",
    "pathlib.Path.write_text", "gentrain.config.locate", "gentrain.config.build", "gentrain.cli.main",
    "gentrain.config.importlib.import_module", "gentrain.engine.loggers.os.system", "gentrain.models.gan.evil",
    "gentrain.nets.layers.torch.load", "gentrain.objectives.penalties.torch.hub.load", "gentrain.modelsx.evil",
    "torch.nn.modules.module.torch.load", "torch.nn.functional.importlib.import_module", "torch.nnx.Linear",
    "torch.nn.Module.__subclasses__", "torch.nn.Module.__init__.__globals__", "torch.optim.optimizer.functools.partial",
    "gentrain.models.wgan.__builtins__.eval", "gentrain.models..os.system", " os.system", "os.system\n", "",
    "torch.nn.Linear\0", "../evil", "evil:Net", 7, None, ["os.system"], {"_target_": "os.system"}, True,
    "${oc.env:TARGET}", "${by_size:a,b,c}", "torch.distributed.launcher.api.launch_agent", "webbrowser.open",
    "gentrain.commands.train.run", "gentrain.engine.launch.launch", "gentrain.data.files.download",
)  # fmt: skip


def placed(config: dict[str, Any], target: object, how: int) -> str:
    """Puts a node that names ``target`` somewhere into a stored config, with arguments it would like."""
    node: Any = {"_target_": target, **({"path": "evil.py"} if how % 2 else {"_args_": ["touch canary"]})}
    node |= ({}, {"_partial_": True}, {"_recursive_": False}, {"_convert_": "all", "_partial_": True})[how % 4]
    place = ("net", "model", "list", "logger", "data", "health", "score", "deep", "about", "optimizer")[how % 10]
    match place:
        case "net":
            config["model"]["net"] = node
        case "model":
            config["model"]["_target_"] = target
        case "list":
            config["model"]["net"] = [1, [node]]
        case "logger":
            config["logger"] = node
        case "data":
            config["data"] = node
        case "health":
            config["callbacks"]["health"] = {**(config["callbacks"]["health"] or {}), "more": node}
        case "score":
            config["metrics"]["scores"] = {**config["metrics"]["scores"], "more": node}
        case "deep":
            config["model"]["players"] = {"generator": {"optimizer": {"a": {"b": [{"c": node}]}}}}
        case "about":
            config["wants"] = {"width": {"a": node}}
        case "optimizer":
            config["model"]["players"]["critic"]["optimizer"]["_target_"] = target
    return place


def test_targets_outside_of_the_allowed_packages_are_not_imported(
    run: Run, trained: Path, workplace: Path, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGET", "os.system")
    file = trained / "config.yaml"
    text = file.read_text(encoding="utf-8")
    cases = [(target, how) for how in range(10) for target in TARGETS]
    random.Random(58).shuffle(cases)
    cases = [(target, k) for k, target in enumerate(TARGETS)] + cases
    cases = cases[:: 1 if count.of(0, 1) else 3][: count.of(20, 200)]
    fired = survived = 0
    unfinished(trained)
    for target, how in cases:
        config = yaml.safe_load(text)
        place = placed(config, target, how)
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        fired += "_target_" in file.read_text()
        before = everything_below(workplace)
        for command in READERS:
            refused(timed(run, command, "run=outputs/run"))
            assert "evil" not in sys.modules, (target, place)
            assert not (workplace / CANARY).exists(), (target, place)
        assert everything_below(workplace) == before
        survived += 1
    count.says(injected=len(cases), fired=fired, survived=survived)
    file.write_text(text, encoding="utf-8")
    assert run("resume", "run=outputs/run").code == 0
    with pytest.raises(UserError, match="evil"):
        __import__("gentrain.config").config.locate("evil.Nothing", trusted=True)
    assert (workplace / CANARY).exists(), "the module would have run"
    del sys.modules["evil"]


def member(name: str, content: bytes = b"x", **marks: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in marks.items():
        setattr(info, key, value)
    return info, content


BIN = "cifar-10-batches-bin"
FIRST = f"{BIN}/data_batch_1.bin"
SPARSE = {"major": "0", "size": str(1 << 40), "map": "0,0"}
# What an archive holds besides, or instead of, the good files.
TARS: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], bool]] = {
    "up": ([member("../../canary")], True),
    "absolute": ([member("/tmp/gentrain-canary")], True),
    "up in a good name": ([member(f"{BIN}/../../canary")], True),
    "symlink": ([member("link", b"", type=tarfile.SYMTYPE, linkname="/etc"), member("link/canary")], True),
    "hard link": ([member("hard", b"", type=tarfile.LNKTYPE, linkname="../../run.json")], True),
    "device": ([member("zero", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)], True),
    "pipe": ([member("pipe", b"", type=tarfile.FIFOTYPE)], True),
    "batch is a symlink": (
        [member(FIRST, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        False,
    ),
    "batch is a hard link": (
        [member(FIRST, b"", type=tarfile.LNKTYPE, linkname="../../run.json")],
        False,
    ),
    "batch is a device": (
        [member(FIRST, b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)],
        False,
    ),
    "batch is a pipe": ([member(FIRST, b"", type=tarfile.FIFOTYPE)], False),
    "batch is a folder": ([member(FIRST, b"", type=tarfile.DIRTYPE)], False),
    "batch is too large": ([member(FIRST, bytes(65 << 20))], False),
    "batch is sparse": (
        [member(FIRST, b"", pax_headers={f"GNU.sparse.{k}": v for k, v in SPARSE.items()})],
        False,
    ),
    "a name of 8 MB": ([member("n" * (8 << 20))], True),
    "many members": ([], True),
}


def tar(path: Path, good: dict[str, bytes], more: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = {info.name for info, _ in more}
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for info, content in [*more, *(member(name, blob) for name, blob in good.items() if name not in taken)]:
            archive.addfile(info, io.BytesIO(content))


TINY = ("model=dcgan", "size=tiny", "trainer=cpu", "trainer.threads=1", "metrics=none", "train.batch_size=2")


@pytest.mark.parametrize("kind", TARS)
def test_tars_put_nothing_anywhere(kind: str, run: Run, workplace: Path, count: Count) -> None:
    more, allowed = TARS[kind]
    more = more or [member(f"{k}") for k in range(count.of(2_000, 100_000))]
    good = cifar_binary(cifar_batches())
    path = workplace / "data" / "cifar10" / cifar.BINARY[0]
    check = ("check", *TINY, "data=cifar10", "data.size=8", "data.download=false")
    tar(path, good, [])
    assert run(*check).code == 0
    tar(path, good, more)
    with tarfile.open(path) as archive:
        assert more[0][0].name.endswith(archive.next().name[-50:]), "the attack is in the archive"
    before = everything_below(workplace)
    ended = timed(run, *check)
    plain(ended)
    assert (ended.code == 0) == allowed, ended
    assert allowed or path.name in ended.err
    assert ("would be" in ended.err) == (kind in ("batch is too large", "batch is sparse"))
    assert everything_below(workplace) == before
    assert not Path("/tmp/gentrain-canary").exists()


@pytest.mark.parametrize("kind", ["a swollen member", "a header without end", "trailing zeros"])
def test_tars_do_not_swell(kind: str, run: Run, workplace: Path) -> None:
    path = workplace / "data" / "cifar10" / cifar.BINARY[0]
    path.parent.mkdir(parents=True)
    size = 600 << 20
    info = {
        "a swollen member": tarfile.TarInfo("zeros"),
        "a header without end": tarfile.TarInfo("long"),
        "trailing zeros": tarfile.TarInfo("zeros"),
    }[kind]
    info.size = size
    info.type = tarfile.GNUTYPE_LONGNAME if kind == "a header without end" else tarfile.REGTYPE
    block = gzip.compress(bytes(16 << 20), 6)
    with path.open("wb") as out:
        out.write(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(size >> 24):
            out.write(block)
    assert path.stat().st_size < 1 << 20, "600 MB from less than one"
    refused(timed(run, "check", *TINY, "data=cifar10", "data.download=false"), path.name, "unpacks to more than")


def _zips(name: str, members: int = 0) -> dict[str, Callable[[zipfile.ZipFile], None]]:
    one = f"img_align_celeba/{name}"

    def linked(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(one)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")

    def many(archive: zipfile.ZipFile) -> None:
        for k in range(members):
            archive.writestr(zipfile.ZipInfo(f"{k}"), b"")

    return {
        "up": lambda archive: archive.writestr("../../canary", "x"),
        "absolute": lambda archive: archive.writestr("/tmp/gentrain-canary", "x"),
        "many members": many,
        "an image is a link": linked,
        "an image swells": lambda archive: archive.writestr(one, bytes(100 << 20), zipfile.ZIP_DEFLATED),
        "an image swells by lzma": lambda archive: archive.writestr(one, bytes(100 << 20), zipfile.ZIP_LZMA),
        "an image is a page": lambda archive: archive.writestr(one, "<html></html>"),
        "an image lacks": lambda _: None,
    }


@pytest.mark.parametrize("kind", _zips(""))
@pytest.mark.parametrize("cache", ["true", "false"])
def test_zips_put_nothing_anywhere(kind: str, cache: str, run: Run, workplace: Path, count: Count) -> None:
    home = workplace / "data" / "celeba"
    celeba_set(home, (0, 0, 0, 0, 1, 2, 2), zipped=True)
    check = ("check", *TINY, "data=celeba", "data.size=8", f"data.cache={cache}")
    assert run(*check).code == 0
    path = home / "img_align_celeba.zip"
    attack = _zips("000001.jpg", count.of(2_000, 100_000))[kind]
    with zipfile.ZipFile(path) as good:
        kept = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        attack(archive)
        taken = set(archive.namelist())
        for name, content in kept.items():
            if name not in taken and not (kind == "an image lacks" and name.endswith("1.jpg")):
                archive.writestr(name, content)
    before = everything_below(workplace / "data")
    ended = timed(run, *check)
    if "image" in kind:
        assert ended.code == 2
        assert "000001.jpg" in lines(ended)[0]
        assert ("unpacked, the limit is" in ended.err) == ("swells" in kind), ended.err
        assert len(lines(ended)) <= 2
    else:
        assert ended.code == 0, ended
    assert everything_below(workplace / "data") == before
    assert not (workplace / CANARY).exists()
    assert not Path("/tmp/gentrain-canary").exists()


def _lying(kind: str, home: Path) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            content = (home / Path(self.path).name).read_bytes()
            port = self.server.server_port  # type: ignore[attr-defined]
            if kind.startswith("redirect") and "again" not in self.path:
                place = {
                    "redirect to another host": f"http://localhost:{port}/again{self.path}",
                    "redirect to a file": f"file://{home}{self.path}",
                    "redirect without end": self.path,
                    "redirect on the same host": f"/again{self.path}",
                }[kind]
                self.send_response(302)
                self.send_header("Location", place)
                self.end_headers()
                return
            self.send_response({"not found": 404, "out of order": 500}.get(kind, 200))
            if kind == "endless":
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    for _ in range(1000):
                        self.wfile.write(bytes(1 << 16))
                return
            body = {
                "other content": content[::-1],
                "one byte changed": content[:-1] + bytes([content[-1] ^ 1]),
                "cut": content[:-9],
                "short of its length": content[:-9],
                "a page": b"<html>quota exceeded</html>",
                "nothing": b"",
                "a length that is none": content,
            }.get(kind, content)
            length: object = len(content) if kind == "short of its length" else len(body)
            self.send_header("Content-Length", "many" if kind == "a length that is none" else str(length))
            self.end_headers()
            self.wfile.write(body)

    return Handler


LIES = (
    "other content", "one byte changed", "cut", "short of its length", "a page", "nothing", "a length that is none",
    "redirect to another host", "redirect to a file", "redirect without end", "not found", "out of order", "endless",
)  # fmt: skip


@pytest.fixture
def published(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """``published(kind)`` starts a server that lies in that way and publishes MNIST there. Returns its files."""
    running = []

    def start(kind: str) -> Path:
        home = workplace / "web"
        idx_set(home)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _lying(kind, home))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        running.append(server)
        sums = tuple(hashlib.md5((home / f"{name}.gz").read_bytes()).hexdigest() for name in idx._NAMES)
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(idx, "MNIST", replace(idx.MNIST, urls=(url,), md5=sums))
        return home

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", LIES)
def test_downloads_that_are_not_what_was_published(
    kind: str, run: Run, workplace: Path, published: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    published(kind)
    monkeypatch.setattr(files, "BYTES_LIMIT", 1 << 20)
    old = workplace / "data" / "mnist" / "train-images-idx3-ubyte.gz"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"what was there before")
    check = ("check", *TINY, "data=mnist", "data.size=8")
    ended = timed(run, *check)
    refused(ended, "download failed", "train-images-idx3-ubyte")
    assert ("MB came" in ended.err) == (kind == "endless"), ended.err
    assert everything_below(workplace / "data") == {"mnist", "mnist/train-images-idx3-ubyte.gz"}
    assert old.read_bytes() == b"what was there before"


@pytest.mark.parametrize("kind", ["the truth", "redirect on the same host"])
def test_downloads_that_are(kind: str, run: Run, workplace: Path, published: Callable[[str], Path]) -> None:
    home = published(kind)
    ended = run("check", *TINY, "data=mnist", "data.size=8")
    assert ended.code == 0, ended.err
    assert everything_below(workplace / "data" / "mnist") == everything_below(home)


@pytest.mark.parametrize(
    ("here", "there", "stays"),
    [
        ("https://a.org/x", "https://a.org/y", True),
        ("https://a.org/x", "/y", True),
        ("http://a.org/x", "https://a.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "https://b.org/x", False),
        ("https://a.org/x", "//b.org/x", False),
        ("https://a.org/x", "https://a.org@b.org/x", False),
        ("https://a.org/x", "https://a.org.b.org/x", False),
    ],
)
def test_only_the_same_host_may_send_on(here: str, there: str, stays: bool) -> None:
    response = SimpleNamespace(is_redirect=True, url=here, headers={"location": there})
    if stays:
        files._stay(response)
    else:
        with pytest.raises(files._RefusedError, match="not what was published"):
            files._stay(response)


NAMES = (
    "..", ".", "../up", "../../up", "a/b", "/tmp/gentrain-canary", "a\\b", "a\nb", "a\0b", "$(touch canary)", "`id`",
    "a;touch canary", "a|b", "a&b", "*", "~", "-rf", "--help", ".hidden", "con", "a" * 5000, "ä", "a b", "%2e%2e%2f",
    "..%00/", "\x1b[2J", "...", "a..b", "{a}", "'", '"', "\t", " ", "\u202e", "c:\\x", "//", "a/../../../b", "#", "!!x",
)  # fmt: skip


def test_run_names_stay_in_the_output_folder(run: Run, workplace: Path, count: Count) -> None:
    chosen = NAMES[:: 1 if count.of(0, 1) else 3]
    short = ("model=gan", *TINY[1:], "data=digits", "train.iterations=1", "train.validate_every=0")
    for name in chosen:
        quoted = name.replace("\\", "\\\\").replace("'", "\\'")
        before = everything_below(workplace) - everything_below_named(workplace, "outputs")
        ended = timed(run, *short, f"name='{quoted}'")
        assert ended.code in (0, 2), (name, ended)
        assert "Traceback" not in ended.err
        assert everything_below(workplace) - everything_below_named(workplace, "outputs") - {"outputs"} <= before
        made = list((workplace / "outputs").iterdir()) if (workplace / "outputs").exists() else []
        assert all(re.fullmatch(r"[A-Za-z0-9_=,+][A-Za-z0-9._=,+-]{0,119}", path.name) for path in made), made
        assert len(made) == (ended.code == 0), (name, made)
        shutil.rmtree(workplace / "outputs", ignore_errors=True)
    assert not Path("/tmp/gentrain-canary").exists()
    assert not (workplace / CANARY).exists()
    assert run(*short, "name=plain").code == 0
    assert (workplace / "outputs" / "plain" / "run.json").is_file()
    count.says(injected=len(chosen), fired=len(chosen), survived=len(chosen))


def everything_below_named(workplace: Path, name: str) -> set[str]:
    return {path for path in everything_below(workplace) if path.split("/")[0] == name}


SECRET = "s3cr3tC4n4ry"


@pytest.mark.parametrize("key", ["api_key", "token", "password", "wandb_api_key", "secret"])
def test_secrets_stand_in_no_file_of_a_run(key: str, run: Run, workplace: Path) -> None:
    given = (*words("model=gan", "name=run", "train.iterations=2", "metrics=none"), f"+about.{key}={SECRET}")
    assert run(*given).code == 0
    stands_nowhere(SECRET, workplace)


def test_what_is_no_secret_stands_in_the_files_of_a_run(run: Run, workplace: Path) -> None:
    given = (*words("model=gan", "name=run", "train.iterations=2", "metrics=none"), f"+about.note={SECRET}")
    assert run(*given).code == 0
    with pytest.raises(AssertionError, match=r"stands in outputs/run/config\.yaml|stands in outputs/run/run\.json"):
        stands_nowhere(SECRET, workplace)


def _laughs(levels: int) -> str:
    parts = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    parts += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join(parts)


YAMLS: dict[str, str] = {
    "a billion laughs": _laughs(10),
    "laughs beyond any number": _laughs(60),
    "a list that holds itself": "data: &a [*a]",
    "a mapping that holds itself": "data: &a {b: *a}",
    "two that hold each other": "data: &a {b: &b {c: *a, d: *b}}",
    "deep lists": "data: " + "[" * 400_000,
    "deep mappings": "data: " + "{a: " * 100_000,
    "deep and closed": "data: " + "[" * 10_000 + "]" * 10_000,
    "deep blocks": "\n".join(" " * k + "a:" for k in range(900)),
    "long": "data: [" + "1, " * 900_000 + "1]",
    "a tag that calls": "data: !!python/object/apply:os.system ['touch canary']",
    "a tag that makes": "data: !!python/object/new:os.system ['touch canary']",
    "a tag that imports": "data: !!python/module:evil",
    "a tag that names": "data: !!python/name:evil.Net",
    "a tag on a key": "!!python/object/apply:os.system ['touch canary']: 1",
    "a tag of another": "data: !evil {a: 1}",
    "a date": "seed: 2001-01-01",
    "a date that is none": "seed: 2001-99-99",
    "a number without end": "seed: " + "9" * 5000,
    "bytes": "seed: !!binary aGVsbG8=",
    "a set": "data: !!set {a, b}",
    "a number for a key": "1: 2",
    "a yes for a key": "yes: 2",
    "a list for a key": "? [a]\n: 1",
    "a merge without a mapping": "data: {<<: 1}",
    "a list": "- 1",
    "a word": "word",
    "nothing": "",
    "two documents": "a: 1\n---\nb: 2",
    "an escape": '"\\e[2J\\e[31m": 1',
    "a zero": "a: \0",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml_that_swells_or_calls(kind: str, run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workplace / "outputs" / "run"
    folder.mkdir(parents=True)
    (workplace / "evil.py").write_text("open('canary', 'w').close()\n")
    monkeypatch.syspath_prepend(str(workplace))
    good = yaml.safe_load(_stored())
    spoilt = YAMLS[kind]
    rest = {key: value for key, value in good.items() if not spoilt.startswith(f"{key}:")}
    text = f"{spoilt}\n{yaml.safe_dump(rest)}" if re.match(r"[\w!\"]+", spoilt) else spoilt
    for content in {spoilt, text}:
        (folder / "config.yaml").write_text(content, encoding="utf-8")
        for command in READERS:
            ended = timed(run, command, "run=outputs/run")
            refused(ended, "config.yaml" if kind not in ("an escape",) else "")
            assert "\x1b" not in ended.err
    assert not (workplace / CANARY).exists()
    assert "evil" not in sys.modules


@functools.cache
def _stored() -> str:
    from conftest import tiny

    return yaml.safe_dump(tiny("model=dcgan"))


def test_a_stored_config_without_a_fault_is_read(run: Run, workplace: Path) -> None:
    """The twin of the test above: its refusals come from the fault."""
    folder = workplace / "outputs" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(_stored(), encoding="utf-8")
    refused(run("sample", "run=outputs/run"), "has not started yet")


def test_no_resolver_runs_code_or_reads_the_machine(
    run: Run, trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omegaconf import OmegaConf
    from omegaconf.basecontainer import BaseContainer

    ours = {"by_size", "by_kind"}
    known = {"oc.create", "oc.decode", "oc.deprecated", "oc.env", "oc.select", "oc.dict.keys", "oc.dict.values"}
    assert all(OmegaConf.has_resolver(name) for name in ours)
    assert set(BaseContainer._resolvers) <= ours | known | {"hydra", "now", "python_version"}
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "src").rglob("*.py"))
    assert set(re.findall(r"register_new_resolver\(\"(\w+)\"", source)) == ours
    assert "import omegaconf" not in (Path(__file__).parents[2] / "src/gentrain/folder.py").read_text()
    # In a stored config they are plain text.
    monkeypatch.setenv("SECRET", SECRET)
    file = trained / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["about"] = {"note": "${oc.env:SECRET}", "more": "${oc.decode:'${oc.env:SECRET}'}"}
    file.write_text(yaml.safe_dump(config))
    unfinished(trained)
    for command in READERS:
        ended = run(command, "run=outputs/run")
        assert ended.code == 0, ended.err
        assert SECRET not in ended.out + ended.err
    stands_nowhere(SECRET, workplace)
    config["data"]["size"] = "${oc.env:SECRET}"
    file.write_text(yaml.safe_dump(config))
    unfinished(trained)
    refused(run("resume", "run=outputs/run"), "data.size", "oc.env")
