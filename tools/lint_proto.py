"""buf over our protos: lint, format, and no breaking change since they were last committed.

    python -m tools.lint_proto             all three
    python -m tools.lint_proto --format    rewrite proto/ the way buf formats it

buf resolves imports only from sources or its registry; ours are in wheels as descriptors, so buf is
given the image that protoc compiles (tools/protos.py), and needs no network. Formatting needs no
imports and works on the sources.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tools.protos import PROTO, ROOT, STAGING, ProtocFailed, image, script


def buf(*arguments: str) -> bool:
    """Runs buf at the top of the repository; whether it was content."""
    return subprocess.run([script("buf"), *arguments], cwd=ROOT, check=False).returncode == 0


def git(*arguments: str) -> bytes | None:
    """What git prints, or None where it fails (no repository, no commit, a shallow clone)."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True)
    return done.stdout if done.returncode == 0 else None


def baseline() -> str | None:
    """The commit to compare with: the last one whose protos are not those of the work tree.

    On a changed tree that is HEAD. On a clean one (CI) it is the parent of the last commit that
    changed proto/, so the last change is still judged after it was committed.
    """
    last = git("log", "-1", "--format=%H", "--", "proto")
    if not last:
        return None
    if git("status", "--porcelain", "--", "proto"):
        return "HEAD"
    parent = git("rev-parse", "--verify", "--quiet", f"{last.decode().strip()}^")
    return parent.decode().strip() if parent else None


def committed_image(commit: str, folder: Path) -> Path | None:
    """The image of `proto/` at `commit`, or None where that commit has none."""
    archive = git("archive", commit, "--", "proto")
    if archive is None:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return image(folder / "proto", folder / "before.binpb")


def main(arguments: list[str]) -> int:
    if arguments == ["--format"]:
        return 0 if buf("format", "--write", "proto") else 1
    STAGING.mkdir(exist_ok=True)
    try:
        now = image(PROTO, STAGING / "image.binpb")
    except ProtocFailed as error:
        print(error, file=sys.stderr)
        return 1
    ours = ["--config", "buf.yaml", "--path", "tcqueue"]
    content = buf("lint", str(now), *ours)
    content &= buf("format", "--diff", "--exit-code", "proto")
    commit = baseline()
    with tempfile.TemporaryDirectory() as scratch:
        before = committed_image(commit, Path(scratch)) if commit else None
        if before is None:
            print("no committed protos to compare with: breaking changes not checked")
        else:
            content &= buf("breaking", str(now), "--against", str(before), *ours)
    return 0 if content else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
