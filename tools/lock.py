"""Writes `constraints.txt`: versions of the packages that our own dependencies bring along.

`pyproject.toml` pins what we name ourselves; this pins the rest, by name and version only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.protos import ROOT

HEADER = """\
# What our dependencies depend on; written by `make lock`, read by `make`. Our own pins: pyproject.toml.
"""


def named() -> list[Requirement]:
    """Every requirement that pyproject.toml names, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in project.get("optional-dependencies", {}).values():
        lines += extra
    return [Requirement(line) for line in lines]


def closure(requirements: list[Requirement]) -> dict[str, Distribution]:
    """The installed distributions that the requirements lead to. Raises PackageNotFoundError."""
    found: dict[str, Distribution] = {}
    pending = [(requirement, extra) for requirement in requirements for extra in (requirement.extras or {""})]
    seen = set()
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = distribution(name)
        for line in found[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                pending += [(needed, wanted) for wanted in (needed.extras or {""})]
    return found


def main() -> int:
    ours = {canonicalize_name(requirement.name) for requirement in named()}
    try:
        found = closure(named())
    except PackageNotFoundError as error:
        print(f"lock: {error.name} is not installed; run `make` with a current .venv first", file=sys.stderr)
        return 1
    lines = [f"{name}=={found[name].version}" for name in sorted(found.keys() - ours)]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.!+-]+", line) for line in lines)
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
