"""Compiles the protos into a folder of its own: `compile_stubs.py FOLDER`, run in the repository."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.gen import generate


def main(folder: Path) -> None:
    """Generates everything and says how much that is."""
    folder.mkdir(parents=True, exist_ok=True)
    generate(folder)
    files = [file for file in folder.rglob("*") if file.is_file()]
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1024:.0f} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
