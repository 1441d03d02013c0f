"""Packs wheels tighter: the same files, LZMA in place of deflate, which pip unpacks as well.

    python repack.py FOLDER

A machine without a network takes only so many bytes at once; the compiled part of polars shrinks by a third.
"""

import sys
import zipfile
from pathlib import Path

WORTH_IT = 2_000_000  # bytes; below, there is little to gain


def repack(wheel: Path) -> None:
    """Replaces one wheel by a tighter one; a wheel that is packed so already stays as it is."""
    with zipfile.ZipFile(wheel) as packed:
        if any(entry.compress_type == zipfile.ZIP_LZMA for entry in packed.infolist()):
            return
        tighter = wheel.with_suffix(".partial")
        with zipfile.ZipFile(tighter, "w", compression=zipfile.ZIP_LZMA) as output:
            for entry in packed.infolist():
                output.writestr(_plain(entry), packed.read(entry))
    tighter.replace(wheel)


def _plain(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    copied = zipfile.ZipInfo(entry.filename, entry.date_time)
    copied.external_attr = entry.external_attr  # modes of executables
    copied.compress_type = zipfile.ZIP_LZMA
    return copied


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.whl")):
        if path.stat().st_size > WORTH_IT:
            repack(path)
