"""Weight files: where they are found, what is refused, and that the networks are those of the published files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor, nn

from gentrain.data.dataset import DataSet
from gentrain.data.sources import digits, ring
from gentrain.errors import UserError
from gentrain.evaluation import dinov2, mobilenet, weight_files
from gentrain.evaluation.dinov2 import DINOv2, DINOv2Net, Width
from gentrain.evaluation.imagenet import MEAN, STD, imagenet_input
from gentrain.evaluation.metrics import Distances
from gentrain.evaluation.mobilenet import MobileNetV2, MobileNetV2Net
from gentrain.evaluation.subject import Subject
from gentrain.evaluation.weight_files import FILES, Found, WeightFile, fetch, load_into, locate

CONTENT = b"all the weights"
FILE = WeightFile(
    name="net-4ba19dcc.pth",
    also=("net-of-another-name.pth",),
    extractor="Net",
    choice="metrics=net",
    url="https://example.invalid/net-4ba19dcc.pth",
    licence="MIT",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches, and no network."""
    monkeypatch.setenv("GENTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENTRAIN_WEIGHTS", raising=False)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", answering(OSError(101, "Network is unreachable")))


def answering(answer: bytes | Exception) -> Callable[..., None]:
    def call(self: object, url: str, output_file: str, _pooch: object, **_kwargs: object) -> None:
        if isinstance(answer, Exception):
            raise answer
        Path(output_file).write_bytes(answer)

    return call


def put(folder: Path, name: str = FILE.name, content: bytes = CONTENT) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


@pytest.fixture(scope="module")
def data() -> DataSet:
    return digits()


# Where a file is found


def test_the_nearer_place_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(FILE) is None
    places = [tmp_path / "torch/hub/checkpoints", tmp_path / "cache/weights", tmp_path / "mine", tmp_path / "said"]
    monkeypatch.setenv("GENTRAIN_WEIGHTS", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    for place in places[:3]:
        path = put(place, FILE.also[0])
        assert fetch(FILE) == Found(path, FILE.sha256 or "")
    path = put(places[3])
    for said in (str(places[3]), str(path)):
        assert fetch(FILE, said).path == path
    renamed = path.rename(places[3] / "anything")
    assert fetch(FILE, str(renamed)).path == renamed


def test_a_place_that_was_named_and_lacks_the_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "cache/weights")
    with pytest.raises(UserError, match=r"weights_path=.*empty does not hold it: put net-4ba19dcc.pth .*there;"):
        fetch(FILE, str(tmp_path / "empty"))
    monkeypatch.setenv("GENTRAIN_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"\$GENTRAIN_WEIGHTS=.*gone does not hold it"):
        fetch(FILE)


def test_one_variable_serves_several_extractors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without the file, or the file of another network, leaves the caches; but nothing is downloaded."""
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", answering(CONTENT))
    other = put(tmp_path / "mine", FILES[0].name)
    for place in (tmp_path / "mine", other):
        monkeypatch.setenv("GENTRAIN_WEIGHTS", str(place))
        with pytest.raises(UserError, match="does not hold it"):
            fetch(FILE)
    kept = put(tmp_path / "cache/weights")
    assert fetch(FILE).path == kept


def test_other_bytes_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "opened",))  # type: ignore[return-value]

    path = put(tmp_path, "net.pth", b"<html>sorry</html>")
    with pytest.raises(
        UserError, match=r"SHA-256 [0-9a-f]{12}\.\.\. \(18 bytes, it is a web page\).* delete it"
    ) as caught:
        fetch(FILE, str(path))
    assert "\n" not in str(caught.value)
    torch.save(Bomb(), path)
    with pytest.raises(UserError, match="SHA-256"):
        fetch(FILE, str(path))
    unknown = dataclasses.replace(FILE, sha256=None, size=None)
    with pytest.raises(UserError, match="holds no weights of Net"):
        load_into(nn.Linear(2, 2), fetch(unknown, str(path)), unknown)
    assert not (tmp_path / "opened").exists()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = put(tmp_path)
    fetch(FILE, str(path))
    path.write_bytes(CONTENT.upper())
    with pytest.raises(UserError, match="SHA-256"):
        fetch(FILE, str(path))


def test_where_a_prefix_is_all_that_is_published_it_must_fit(tmp_path: Path) -> None:
    path = put(tmp_path)
    whole = hashlib.sha256(CONTENT).hexdigest()
    assert fetch(dataclasses.replace(FILE, sha256=whole[:8]), str(path)).sha256 == whole
    assert fetch(dataclasses.replace(FILE, sha256=None), str(path)).sha256 == whole
    with pytest.raises(UserError, match=r"SHA-256 00000000\.\.\."):
        fetch(dataclasses.replace(FILE, sha256="0" * 8), str(path))


def test_a_failed_download_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch(FILE)
    said = str(caught.value)
    assert FILE.sha256 is not None
    for needed in ("Network is unreachable", FILE.name, FILE.sha256, FILE.url, str(tmp_path / "cache/weights")):
        assert needed in said
    assert "$GENTRAIN_WEIGHTS" in said
    assert "metrics=domain is the stand-in that needs no download" in said
    assert "\n" not in said
    assert not (tmp_path / "cache/weights").exists()


@pytest.mark.parametrize("published", [64, 8, 0])
def test_only_the_published_bytes_are_kept(published: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = dataclasses.replace(FILE, sha256=(FILE.sha256 or "")[:published] or None)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", answering(CONTENT[:-1]))
    target = tmp_path / "cache/weights" / FILE.name
    with pytest.raises(UserError, match="SHA-256"):
        fetch(file)
    assert not target.exists()
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", answering(CONTENT))
    assert fetch(file).path == target
    assert [path.name for path in target.parent.iterdir()] == [FILE.name]


def test_a_download_ends_when_too_much_comes_or_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []
    monkeypatch.setattr(pooch.HTTPDownloader, "__init__", lambda self, **kwargs: bars.append(kwargs))
    with pytest.raises(UserError):
        fetch(FILE)
    assert bars[0]["timeout"] <= 30
    with pytest.raises(OSError, match="more than"):
        bars[0]["progressbar"].update(len(CONTENT) + 1)
    bars[0]["progressbar"].received = 0
    bars[0]["progressbar"].until -= 61
    with pytest.raises(OSError, match="too slow"):
        bars[0]["progressbar"].update(1)


# The records, and the command that shows them


def test_records_are_whole() -> None:
    names = [name for file in FILES for name in file.names]
    assert len(set(names)) == len(names) == 7
    for file in FILES:
        assert file.url.startswith("https://")
        assert file.url.rsplit("/", 1)[1] in file.names
        assert file.sha256 is not None
        assert len(file.sha256) == 64
        digits_in_name = file.name.removesuffix(".pth").rsplit("-", 1)[-1]
        assert "_pretrain" in digits_in_name or file.sha256.startswith(digits_in_name)
        assert file.size is not None


def test_the_command_says_where_files_are_and_imports_no_torch(tmp_path: Path, run: Run) -> None:
    mine = put(tmp_path / "cache/weights", FILES[1].name)
    entries = json.loads(run("weights", "--json").out)
    assert [entry["names"][0] for entry in entries] == [file.name for file in FILES]
    assert entries[0]["found"] is None
    assert entries[0]["put"] == str(tmp_path / "cache/weights")
    assert entries[1]["found"] == str(mine)
    assert "SHA-256" in entries[1]["complaint"]
    shown = run("weights")
    assert shown.code == 0
    for file in FILES:
        assert all(text in shown.out for text in (file.name, file.url, file.licence, file.sha256 or "", file.choice))
    assert run("weights", "inception").code == 2
    asked = "import sys; from gentrain.cli import main; main(['weights']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert not {"'torch'", "'numpy'", "'pooch'", "'lightning'"} & set(done.stderr.strip("[]\n").split(", "))


# What the networks see


def test_images_are_resized_as_image_libraries_do() -> None:
    constant = torch.full((1, 1, 9, 9), 200, dtype=torch.uint8)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    expected = ((200 / 255 - mean) / std)[None, :, None, None].expand(1, 3, 224, 224)
    torch.testing.assert_close(imagenet_input(constant), expected)
    rows, columns = np.mgrid[0:1:90j, 0:1:70j]
    smooth = np.rint(255 * (0.5 + 0.5 * np.sin(3 * rows + 5 * columns))).astype(np.uint8)
    for array in (smooth, smooth.repeat(6, 0).repeat(6, 1)):  # made larger and smaller
        ours = imagenet_input(torch.from_numpy(array)[None, None])[0, 0] * std[0] + mean[0]
        theirs = np.asarray(Image.fromarray(array).resize((224, 224), Image.Resampling.BICUBIC))
        assert np.abs(255 * ours.numpy() - theirs).max() < 1.01  # they round between the two directions, too
    native = torch.randint(0, 256, (1, 3, 224, 224)).to(torch.uint8)
    back = imagenet_input(native) * std[:, None, None] + mean[:, None, None]
    torch.testing.assert_close(back, native / 255)


def randomise(net: nn.Module) -> nn.Module:
    """Every tensor away from what it starts as, norms' statistics included, so that none can be mixed up."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape)
            tensor.copy_(
                noise.abs() + 0.5 if "var" in name or tensor.ndim == 1 else noise / math.sqrt(tensor[0].numel())
            )
    return net.eval()


@torch.no_grad()
def test_mobilenet_is_torchvisions() -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = randomise(models.mobilenet_v2(weights=None))
    ours = MobileNetV2Net().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 96, 80)
    features, logits = ours.of_normalised(x)
    torch.testing.assert_close(logits, theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, theirs.features(x).mean((2, 3)), rtol=1e-5, atol=1e-5)
    assert (features.shape, logits.shape) == ((2, 1280), (2, 1000))
    assert float(logits.std()) > 1e-3


# Names and shapes of the published files: three of the network's own tensors beside those of a block.
def published(d: int, blocks: int) -> dict[str, tuple[int, ...]]:
    head = {"cls_token": (1, 1, d), "pos_embed": (1, 1370, d), "mask_token": (1, d)}
    patch = {"patch_embed.proj.weight": (d, 3, 14, 14), "patch_embed.proj.bias": (d,)}
    each = {
        "norm1.weight": (d,), "norm1.bias": (d,), "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,),
        "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "ls1.gamma": (d,), "norm2.weight": (d,), "norm2.bias": (d,),
        "mlp.fc1.weight": (4 * d, d), "mlp.fc1.bias": (4 * d,), "mlp.fc2.weight": (d, 4 * d), "mlp.fc2.bias": (d,),
        "ls2.gamma": (d,),
    }  # fmt: skip
    body = {f"blocks.{block}.{name}": shape for block in range(blocks) for name, shape in each.items()}
    return head | patch | body | {"norm.weight": (d,), "norm.bias": (d,)}


@pytest.mark.parametrize(("size", "d", "blocks"), [("vits14", 384, 12), ("vitb14", 768, 12), ("vitl14", 1024, 24)])
def test_dinov2_has_the_tensors_of_the_published_files(size: str, d: int, blocks: int) -> None:
    with torch.device("meta"):
        net = DINOv2Net(dinov2.WIDTHS[size])
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == published(d, blocks)
    known = dinov2.DINOV2[size].size
    assert known is not None
    stored = 4 * sum(tensor.numel() for tensor in net.state_dict().values())
    assert 0 < known - stored < 150_000  # the rest is the archive's own


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def bicubic(side: int) -> Tensor:
    """[side 37]: weights of the filter with a = -0.75 at the places that the factor (side + 0.1) / 37 makes."""
    rows = torch.zeros(side, 37, dtype=torch.float64)
    for row in range(side):
        place = (row + 0.5) * 37 / (side + 0.1) - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            t, a = abs(place - tap), -0.75
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            rows[row, min(max(tap, 0), 36)] += near if t <= 1 else far
    return rows


def vision_transformer(s: dict[str, Tensor], x: Tensor, blocks: int, heads: int) -> Tensor:
    """The network as explicit sums. x: float64 [B 3 S S]."""
    side, d = x.shape[-1] // 14, s["cls_token"].shape[-1]
    cut = x.unfold(2, 14, 14).unfold(3, 14, 14)  # [B 3 side side 14 14]
    patches = torch.einsum("bcijkl,dckl->bijd", cut, s["patch_embed.proj.weight"]) + s["patch_embed.proj.bias"]
    w, grid = bicubic(side), s["pos_embed"][0, 1:].view(37, 37, d)
    patches = patches + torch.einsum("ik,jl,kld->ijd", w, w, grid)
    first = (s["cls_token"] + s["pos_embed"][:, :1]).expand(len(x), 1, d)
    h = torch.cat([first, patches.flatten(1, 2)], dim=1)
    for block in range(blocks):
        p = {name.removeprefix(f"blocks.{block}."): v for name, v in s.items() if name.startswith(f"blocks.{block}.")}
        qkv = norm(h, p["norm1.weight"], p["norm1.bias"]) @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]
        q, k, v = (part.unflatten(2, (heads, d // heads)) for part in qkv.split(d, dim=2))
        attention = (torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(d // heads)).softmax(-1)
        mixed = torch.einsum("bhij,bjhc->bihc", attention, v).flatten(2)
        h = h + p["ls1.gamma"] * (mixed @ p["attn.proj.weight"].T + p["attn.proj.bias"])
        u = norm(h, p["norm2.weight"], p["norm2.bias"]) @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"]
        u = u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
        h = h + p["ls2.gamma"] * (u @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"])
    return norm(h[:, 0], s["norm.weight"], s["norm.bias"])


@torch.no_grad()
@pytest.mark.parametrize("side", [224, 98])
def test_dinov2_is_the_sum_of_its_parts(side: int) -> None:
    net = randomise(DINOv2Net(Width(12, 2, 3))).double()
    assert isinstance(net, DINOv2Net)
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    found = net.of_normalised(x)
    torch.testing.assert_close(found, vision_transformer(net.state_dict(), x, 2, 3), rtol=1e-6, atol=1e-6)
    assert net.positions(37).equal(net.pos_embed)
    assert float((found[0] - found[1]).abs().max()) > 1e-3


# The two as sources


def saved(net: nn.Module, folder: Path, file: WeightFile) -> WeightFile:
    """Its random weights under the file's name, and the record with their hash."""
    folder.mkdir(exist_ok=True)
    torch.save(randomise(net).state_dict(), folder / file.name)
    content = (folder / file.name).read_bytes()
    return dataclasses.replace(file, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def test_mobilenet_scores_images(data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(MobileNetV2Net(), tmp_path / "mine", mobilenet.MOBILENETV2)
    monkeypatch.setattr(mobilenet, "MOBILENETV2", file)
    source = MobileNetV2(str(tmp_path / "mine"))
    source.check(data)
    extractor = source.load(data)
    assert (extractor.sha256, extractor.num_features, extractor.bits) == (file.sha256, 1280, 8)
    assert "bicubic" in extractor.resize
    grey = data.test.all(2).x
    found = extractor(grey)
    assert found.logits is not None
    assert (found.features.shape, found.logits.shape) == ((2, 1280), (2, 1000))
    assert extractor(grey.expand(-1, 3, -1, -1)).features.equal(found.features)
    assert source.keys.distance == "fd_mobilenetv2"
    assert Distances(source, splits=1).scores(None, data) == (
        *("fd_mobilenetv2", "kid_mobilenetv2", "kid_mobilenetv2_sd", "is_mobilenetv2"),
    )
    with pytest.raises(UserError, match="vectors"):
        source.check(ring(train_size=10, test_size=10))


def test_dinov2_gives_distances_and_no_inception_score(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = Width(12, 1, 2)
    file = saved(DINOv2Net(width), tmp_path / "mine", dinov2.DINOV2["vits14"])
    monkeypatch.setitem(dinov2.WIDTHS, "vits14", width)
    monkeypatch.setitem(dinov2.DINOV2, "vits14", file)
    source = DINOv2("vits14", str(tmp_path / "mine"))
    source.check(data)
    x = data.train.all(20).x
    metric = Distances(source, reference=20, subsets=2, subset_size=5)
    found = metric.measure(Subject(data, None, lambda n: x[:n], n=20))
    assert tuple(found) == metric.scores(None, data) == ("fd_dinov2", "kid_dinov2", "kid_dinov2_sd")
    assert all(math.isfinite(value) for value in found.values())
    with pytest.raises(UserError, match=r"size=vits: .*did you mean vits14"):
        DINOv2("vits")
    torch.save({"cls_token": torch.zeros(1)}, tmp_path / "other.pth")
    other = dataclasses.replace(file, sha256=None, size=None)
    with pytest.raises(UserError, match=r"holds no weights of DINOv2 vits14 .*size mismatch|Missing key") as caught:
        load_into(DINOv2Net(width), fetch(other, str(tmp_path / "other.pth")), other)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_one_line_before_anything_is_trained(run: Run) -> None:
    for choice in ("mobilenetv2", "dinov2"):
        answer = run(
            "model=dcgan", "data=digits", "size=tiny", f"metrics={choice}", "metrics.scores.distances.allow_few=true"
        )
        assert answer.code == 2
        assert answer.err.count("\n") == 1
        assert "Network is unreachable" in answer.err
    assert weight_files.store().parent.name == "cache"
