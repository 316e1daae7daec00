"""Says what the other tasks of the build left in a folder: `summary.py FOLDER`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path


def tests(file: Path) -> str:
    """What a test report says."""
    suite = ElementTree.parse(file).getroot().find("testsuite")
    if suite is None:
        return "an empty report"
    return (
        f"{suite.get('tests')} tests, {suite.get('failures')} failed, {float(suite.get('time', '0')):.1f} s"
    )


def main(folder: Path) -> None:
    """One line for each thing."""
    stubs = [file for file in (folder / "stubs").rglob("*") if file.is_file()]
    print(f"stubs          {len(stubs)} files")
    findings = (folder / "lint.txt").read_text().strip().splitlines()
    print(f"lint           {findings[-1] if findings else 'nothing found'}")
    for file in sorted(folder.glob("*.xml")):
        print(f"{file.stem:<15}{tests(file)}")
    for file in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(file) as wheel:
            size = f"{len(wheel.namelist())} files, {file.stat().st_size // 1024} KiB"
        print(f"wheel          {file.name}, {size}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
