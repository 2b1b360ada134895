"""The command line as users meet it: words, flags, mistakes, and what it must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run, words

from gentrain.cli import WORDS, main
from gentrain.compose import compose, expand
from gentrain.config import load_yaml, locate, options
from gentrain.errors import UserError
from gentrain.folder import safe_name

PYTHON = [sys.executable, "-m", "gentrain"]

MISTAKES = [
    ("model=wgan_pg", "wgan_gp"),
    ("loss=hing", "hinge"),
    ("data=digit", "digits"),
    ("model/net=dcgam", "dcgan"),
    ("size=big", "tiny"),
    ("train.iteratons=5", "train.iterations"),
    ("model.net.widht=5", "model.net.width"),
    ("+train.foo=5", "train.foo"),
    ("+model.bar=1", "model.bar"),
    ("+nonsense=1", "nonsense"),
    ("train.iterations=many", "int is needed"),
    ("train.iterations=0", "at least 1"),
    ("train.batch_size=1.5", "int is needed"),
    ("train.accumulate=100", "accumulate"),
    ("model=gan model.prior=cauchy", "normal, uniform"),
    ("precision=fp8", "bf16-mixed"),
    ("seed=x", "seed"),
    ("model=vae loss=hinge", "bernoulli, cross_entropy, density, gaussian, logistic"),
    ("model=dcgan loss=bernoulli", "nonsaturating"),
    ("model=glow loss=hinge", "leave it out"),
    ("model=glow loss=nonsaturating", "leave it out"),
    ("model=vae data=ring", "images"),
    ("model=dcgan data=ring model/net=dcgan", "model/net=mlp"),
    ("data.size=16 model=wgan_gp model.net.critic_norm=batch model.net.depth=2", "critic_norm"),
    ("train.batch_size=5000", "1438"),
    ("data.size=9", "8, 16"),
    ("data=folder data.root=nowhere", "nowhere"),
    ("data=celeba", "img_align_celeba"),
    ("data=mnist data.download=false", "data"),
    ("trainer=gpu", "no CUDA device"),
    ("trainer.devices=0", "at least 1"),
    ("trainer.colour=1", "trainer.colour"),
    ("metrics.monitor=fd_domian", "fd_domain"),
    ("metrics.samples=3", "3"),
    ("metrics=modes", "modes"),
    ("model.players.critic.optimizer._target_=torch.optim.Adan", "Adam"),
    ("model.players.critic.optimizer._target_=no.such.thing", "no.such.thing"),
    ("name=../up", "name"),
    ("seed=[1", "key=value"),
    ("foo", "key=value"),
]


@pytest.mark.parametrize(("mistake", "hint"), MISTAKES, ids=[m for m, _ in MISTAKES])
def test_a_mistake_is_one_line_that_helps_and_leaves_nothing(
    mistake: str, hint: str, run: Run, workplace: Path
) -> None:
    given = mistake.split()
    chosen = {w.split("=")[0] for w in given}
    ended = run(*[w for w in words() if w.split("=")[0] not in chosen], "train.iterations=2", *given)
    lines = [line for line in ended.err.splitlines() if line.strip()]
    assert ended.code == 2, ended
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("gentrain: ")
    assert hint in lines[0]
    assert not list(workplace.glob("outputs/**/*")), "a folder was left behind"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "train"),
        (["resume"], "run="),
        (["resume", "run=nowhere"], "not a run folder"),
        (["resume", "rum=x"], "run"),
        (["sample", "run=nowhere"], "not a run folder"),
        (["evaluate"], "run="),
        (["list", "modles"], "models"),
        (["list", "--yaml"], "--json"),
        (["check", "--mutlirun"], "--multirun"),
        (["check", "-cd", "nowhere"], "nowhere"),
        (["check", "-cn", "nowhere"], "nowhere"),
        (["check", "-cd"], "a value must follow"),
        (["-m", "model=dcgan,nope"], "nope"),
        (["-m", "seed=1,x"], "seed"),
    ],
    ids=" ".join,
)
def test_wrong_words_and_flags_are_one_line(arguments: list[str], hint: str, run: Run) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert hint in ended.err
    assert len(ended.err.splitlines()) == 1


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError):
        main(["check", "model=nope", "debug=true"])


def test_help_list_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from gentrain.cli import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'hydra', 'omegaconf', 'torchmetrics', 'wandb'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    for arguments in (["--help"], ["--version"], ["list"], ["list", "models", "--json"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_help_names_every_word(run: Run) -> None:
    shown = run("--help").out
    assert all(word in shown for word in WORDS)


def test_list_is_read_from_the_config_tree(run: Run) -> None:
    listed = json.loads(run("list", "models", "--json").out)
    assert [record["name"] for record in listed] == options("model")
    assert all(record["paper"] and record["can"] and record["family"] for record in listed)
    everything = json.loads(run("list", "--json").out)
    assert {r["name"] for r in everything["losses"]} >= {"hinge", "wasserstein", "bernoulli"}
    assert all(r["what"] for group in everything.values() for r in group), "every option says what it is"
    table = run("list", "models").out
    assert all(name in table for name in options("model"))


def test_hydras_flags_and_completion_work() -> None:
    for arguments, expected in (
        (["--cfg", "job", "model=vae"], "gentrain.families.variational.Variational"),
        (["--cfg", "job", "--resolve", "model=vae"], "gentrain.families.variational.Variational"),
        (["--info", "defaults"], "wgan_gp"),
        (["--hydra-help"], "--multirun"),
        (["-sc", "install=bash"], "COMP_LINE"),
    ):
        done = subprocess.run([*PYTHON, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_a_reader_that_goes_away_is_no_fault() -> None:
    shell = f"set -o pipefail; {sys.executable} -m gentrain list | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_train_sample_evaluate_resume(run: Run, workplace: Path) -> None:
    trained = run(*words("model=vae", "name=run"))
    assert trained.code == 0
    folder = workplace / "outputs" / "run"
    for name in ("picture", "scores", "checkpoints"):
        assert name in trained.out
    card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert card["status"] == "finished"
    assert card["final"]["elbo_nats"] <= card["final"]["iw_bound_nats"]
    assert {"versions", "seed", "data", "device", "protocol", "best", "parameters", "command"} <= set(card)
    for picture in ("real.png", "samples-latest.png", "reconstructions-latest.png"):
        assert (folder / "samples" / picture).is_file()

    scored = [run("evaluate", "run=outputs/run", "device=cpu", "--json").out for _ in range(2)]
    assert json.loads(scored[0])["scores"] == json.loads(scored[1])["scores"] == card["final"]
    best = json.loads(run("evaluate", "run=outputs/run", "checkpoint=best", "device=cpu", "--json").out)
    assert best["scores"] == card["best"]["at_end"]
    assert best["iteration"] == card["best"]["iteration"]

    assert run("sample", "run=outputs/run", "n=5", "out=drawn").code == 0
    assert run("sample", "run=outputs/run", "n=5", "out=again").code == 0
    files = sorted(p.name for p in (workplace / "drawn").iterdir())
    assert files == ["000000.png", "000001.png", "000002.png", "000003.png", "000004.png", "grid.png"]
    assert all((workplace / "drawn" / f).read_bytes() == (workplace / "again" / f).read_bytes() for f in files)
    assert "finished already" in run("resume", "run=outputs/run").out
    assert "is a run already" in run(*words("model=vae", "name=run")).err
    for wrong in ("checkpoint=nope", "n=0", "n=x", "weights=old", "checkpoint=../run.json"):
        assert run("sample", "run=outputs/run", wrong).code == 2


def test_toy_data_bring_their_own_networks_and_scores(run: Run, workplace: Path) -> None:
    assert run(*words("model=wgan_gp", "name=ring")[1:], "data=ring", "size=tiny").code == 0
    card = json.loads((workplace / "outputs" / "ring" / "run.json").read_text(encoding="utf-8"))
    assert card["final"]["modes_total"] == 8
    assert run("sample", "run=outputs/ring", "n=20").code == 0


def test_a_stored_config_runs_no_foreign_code(run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*words("model=dcgan", "name=run", "metrics=none")).code == 0
    monkeypatch.syspath_prepend(str(workplace))
    (workplace / "evil.py").write_text("open('canary', 'w').close()\nclass Net: pass\n", encoding="utf-8")
    file = workplace / "outputs" / "run" / "config.yaml"
    text = file.read_text(encoding="utf-8")
    for target in ("evil.Net", "os.mkdir", "torch.hub.load", "gentrain.config.importlib.import_module"):
        file.write_text(text.replace("gentrain.nets.dcgan.DCGAN", target), encoding="utf-8")
        card = workplace / "outputs" / "run" / "run.json"
        card.write_text(card.read_text(encoding="utf-8").replace("finished", "failed"), encoding="utf-8")
        for command in ("sample", "resume", "evaluate"):
            ended = run(command, "run=outputs/run")
            assert ended.code == 2, (target, command)
            assert "outside" in ended.err or "allowed" in ended.err or "without metrics" in ended.err
            assert not (workplace / "canary").exists()
    assert locate("evil.Net", trusted=True).__name__ == "Net"
    assert (workplace / "canary").exists(), "the module would have run"


def test_yaml_tags_make_no_objects(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text in ("a: !!python/object/apply:os.system ['true']", "a: [", "- 1", "\0"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"config\.yaml"):
            load_yaml(file)


def test_sweeps_expand_in_hydras_grammar() -> None:
    assert expand(["model=a,b", "seed=0,1", "x=[1,2]"]) == [
        ["model=a", "seed=0", "x=[1,2]"],
        ["model=a", "seed=1", "x=[1,2]"],
        ["model=b", "seed=0", "x=[1,2]"],
        ["model=b", "seed=1", "x=[1,2]"],
    ]
    assert [job[0] for job in expand(["seed=range(3)"])] == ["seed=0", "seed=1", "seed=2"]


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", "", "\0", "a\nb", "...", "../x"])
def test_run_names_stay_in_their_folder(name: str) -> None:
    with pytest.raises(UserError, match="plain name"):
        safe_name(name, "name")


def test_data_override_of_the_network_gives_way_to_the_command_line() -> None:
    assert compose(["data=ring"]).config["choices"]["model/net"] == "mlp"
    assert compose(["data=ring", "model/net=dcgan"]).config["choices"]["model/net"] == "dcgan"
    assert compose(["model=wgan"]).config["choices"]["loss"] == "wasserstein"
    assert compose(["model=wgan", "loss=hinge"]).config["choices"]["loss"] == "hinge"


def test_several_choices_of_a_group_are_named_in_their_order() -> None:
    choices = compose(["data=digits", "model/penalty=[r2,r1]", "model/view=[ada]"]).config["choices"]
    assert (choices["model/penalty"], choices["model/view"], choices["model/net"]) == ("[r2,r1]", "[ada]", "dcgan")
    one = compose(["data=digits", "model/penalty=r1", "metrics=domain"]).config["choices"]
    assert one["model/penalty"] == "r1"
    of_recipe = compose(["experiment=dcgan_fashion_mnist"]).config["choices"]
    assert {key for key in of_recipe if key not in one} == set()
    assert {key for key in choices if key not in one} == set()


def test_a_folder_with_the_users_own_files_is_refused_and_untouched(run: Run, workplace: Path) -> None:
    mine = workplace / "outputs" / "mine" / "precious.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("hello", encoding="utf-8")
    ended = run("size=tiny", "data=folder", "data.root=nowhere", "name=mine")
    assert ended.code == 2
    assert "holds other files" in ended.err
    assert mine.read_text(encoding="utf-8") == "hello"
