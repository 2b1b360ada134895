"""The command line: ``gentrain [word] key=value ...``.

This module and what it imports at the top start in a few hundredths of a second; torch, Lightning and Hydra (0.3 to
8 s) are imported by the command that needs them, when it needs them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from gentrain import __version__
from gentrain.config import nearest
from gentrain.errors import UserError, guarded

WORDS = {
    "train": "train a model (the default word)",
    "resume": "go on with an interrupted run, bit for bit",
    "sample": "draw pictures from a trained run",
    "compress": "write pictures to a small file with a trained compressor",
    "decompress": "read them back",
    "evaluate": "score a run again with its stored protocol, or any images",
    "explore": "look into a trained run: codes, anomalies, interpolation, ...",
    "table": "finished runs side by side, mean and spread over seeds",
    "list": "models, data, losses, networks, metrics, experiments",
    "check": "compose and validate a config, train nothing",
    "weights": "weight files of the metrics: where they are, or where to put them",
    "extractor": "train a small classifier to score one data set with",
}

HELP = """\
gentrain: train, score and compare generative models

usage: gentrain [word] [key=value ...]

words
{words}

examples
  gentrain model=wgan_gp data=digits                 train, with pictures and scores in outputs/
  gentrain model=dcgan data=fashion_mnist loss=hinge size=small
  gentrain -m model=dcgan,wgan_gp seed=0,1,2         a sweep: six jobs, one table
  gentrain experiment=wgan_gp_fashion_mnist          a complete recipe
  gentrain resume run=outputs/wgan_gp-digits/...     continue where it stopped
  gentrain sample run=outputs/wgan_gp-digits/... n=64
  gentrain evaluate samples=FOLDER data=digits       score pictures made by any tool
  gentrain explore                                   tools for codes: probe, cluster, latent, traverse, ...
  gentrain table outputs --data fashion_mnist        a GAN beside a VAE: scores, bits/dim, cost
  gentrain list models                               what there is; --json for machines
  gentrain check model=vae loss=hinge                what is wrong, before anything runs
  gentrain extractor data=folder data.root=~/pictures
                                                     then data=folder ... metrics=domain needs no download

groups: choose with group=name, see them with `gentrain list`
  model data loss model/net size trainer metrics logger turns callbacks experiment debug

keys: change any number with its dotted path, e.g. train.iterations=5000 model.net.width=64
  gentrain --cfg job model=dcgan     the whole config (Hydra's --info, --resolve, --package and -cd work too)

flags
  -m, --multirun    every combination of comma-separated values, each in its own process
  -cd, --config-dir DIR    your own config folder, searched before the shipped one; for `list` too
  -cn, --config-name NAME  another root config, shipped or in DIR
  debug=true or GENTRAIN_DEBUG=1    show tracebacks for user errors too
  --version, --help, --hydra-help
  eval "$(gentrain -sc install=bash)"    tab completion

Exit codes: 0 done, 1 a fault or a failed job of a sweep, 2 a mistake in what was asked, 130/143 stopped by a signal.
"""

OWN_HELP = {"explore"}
"""Words that say themselves what stands behind them."""

FOR_HYDRA = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "debug=true" in arguments
    return guarded(lambda: _run([a for a in arguments if a != "debug=true"]), debug=debug)


def _run(arguments: list[str]) -> int:
    if any(flag in ("--help", "-h") for flag in arguments) and arguments[0] not in OWN_HELP:
        width = max(map(len, WORDS))
        print(HELP.format(words="\n".join(f"  {word:<{width}}  {text}" for word, text in WORDS.items())), end="")
        return 0
    if "--version" in arguments:
        print(f"gentrain {__version__}")
        return 0
    if any(argument.split("=")[0] in FOR_HYDRA for argument in arguments):
        from gentrain.commands.words import place
        from gentrain.compose import hydra_main

        words, flags = place(arguments[1:] if arguments[0] in ("train", "check") else arguments)
        hydra_main(flags, config_name=words.config_name, config_dirs=words.config_dirs)
        return 0
    word, rest = "train", arguments
    if arguments and "=" not in arguments[0] and not arguments[0].startswith(("-", "+", "~")):
        word, rest = arguments[0], arguments[1:]
    if word not in WORDS:
        raise UserError(f"{word}: no such word{nearest(word, WORDS)}; choices are key=value; see gentrain --help")
    command = importlib.import_module(f"gentrain.commands.{word}")
    code: int = command.run(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
