"""``gentrain decompress run=DIR file=FILE out=FILE.png|FOLDER``: the pictures in a file of ``gentrain compress``.

The run, checkpoint and weights must be those that wrote it. One picture goes to ``out`` if that ends in .png; else
``out`` is a folder, and the pictures are 000000.png and so on in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gentrain.commands.compress import BATCH, OF_RUN, compressor
from gentrain.commands.words import options
from gentrain.errors import OK, UserError
from gentrain.folder import RunFolder

KEYS = {"run": None, "file": None, "out": None} | OF_RUN


def run(arguments: Sequence[str]) -> int:
    given = options(arguments, KEYS, "decompress")
    folder, file, out = RunFolder.open(Path(given["run"])), Path(given["file"]), Path(given["out"])
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise UserError(f"file={file}: cannot be read ({error.strerror})") from None
    from gentrain.coding import unpack
    from gentrain.engine.sampling import at_rest
    from gentrain.report.pictures import single

    system = compressor(folder, given)
    single_file = out.suffix.lower() == ".png"
    with at_rest(system, given["weights"]):
        streams = unpack(blob, f"file={file}", system.spec.shape, system.fingerprint())  # type: ignore[operator]
        if single_file and len(streams) != 1:
            raise UserError(f"out={out}: {len(streams)} pictures are in the file; name a folder")
        (out.parent if single_file else out).mkdir(parents=True, exist_ok=True)
        for start in range(0, len(streams), BATCH):
            for i, image in enumerate(system.decompress(streams[start : start + BATCH]), start):  # type: ignore[operator]
                single(image, out if single_file else out / f"{i:06d}.png")
    print(f"{len(streams)} pictures: {out}")
    return OK
