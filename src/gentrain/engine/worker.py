"""``python -m gentrain.engine.worker FOLDER``: run the job that a folder's frozen config describes, as one process.

Used for each rank of a multi-device job and for each job of a sweep. Exit codes: 0 done, 2 a user's mistake, 1 a fault,
130/143 stopped by a signal after a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gentrain.errors import guarded
from gentrain.folder import RunFolder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gentrain.engine.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--trust", action="store_true")
    options = parser.parse_args(arguments)

    def work() -> int:
        folder = RunFolder.open(options.folder)
        config = folder.config()
        from gentrain.commands.train import go
        from gentrain.engine.fit import count_devices

        _, world = count_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
        # A rank trains; a job of several devices starts its ranks first.
        here = 1 if "RANK" in os.environ else world
        return go(folder, config, here, resume=options.resume, trusted=options.trust)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
