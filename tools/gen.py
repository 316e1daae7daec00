"""Writes `gen/` from `proto/`, or proves that it is current.

python -m tools.gen            rewrite gen/
python -m tools.gen --check    exit 1, naming the files, when gen/ is not what proto/ gives
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tools.comments import comments
from tools.protos import PROTO, ROOT, VALIDATE, ProtocFailed, run_protoc, script, sources

GEN = ROOT / "gen"

# `buf` gets no __init__.py: it is a namespace that other packages may have a part of.
PACKAGES = {
    "tcqueue/__init__.py": '"""Generated from proto/ by `make gen`; never edited."""\n',
    "tcqueue/py.typed": "",
    "tcqueue/v1/__init__.py": '"""Messages, options and services of package tcqueue.v1; generated."""\n',
    "buf/validate/py.typed": "",
}


def generate(target: Path) -> None:
    """Generates everything into the empty folder `target`. Raises ProtocFailed."""
    ours = sources()
    with tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch) / "set.binpb"
        run_protoc(
            PROTO,
            [*ours, VALIDATE],
            f"--python_out={target}",
            f"--plugin=protoc-gen-mypy={script('protoc-gen-mypy')}",
            f"--mypy_out=quiet:{target}",
            f"--descriptor_set_out={described}",
            "--include_source_info",
        )
        files = FileDescriptorSet.FromString(described.read_bytes()).file
    # The gRPC plugins write a hollow module for a file without services; those we leave out.
    run_protoc(
        PROTO,
        [file.name for file in files if file.service],
        f"--grpc_python_out={target}",
        f"--plugin=protoc-gen-mypy_grpc={script('protoc-gen-mypy_grpc')}",
        f"--mypy_grpc_out=quiet:{target}",
    )
    (target / "tcqueue/v1/comments.json").write_text(comments(files), encoding="utf-8")
    for name, text in PACKAGES.items():
        (target / name).write_text(text, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """The files below `folder` by relative name; byte code left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def install(wanted: dict[str, bytes], folder: Path) -> None:
    """Makes `folder` hold exactly `wanted`, touching only what differs."""
    present = contents(folder) if folder.exists() else {}
    for name in present.keys() - wanted.keys():
        (folder / name).unlink()
    for name, data in wanted.items():
        if present.get(name) != data:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and path.name != "__pycache__" and not contents(path):
            shutil.rmtree(path)


def differences(wanted: dict[str, bytes], present: dict[str, bytes]) -> list[str]:
    """One line for each file that is missing, left over or different."""
    lines = [f"missing    gen/{name}" for name in sorted(wanted.keys() - present.keys())]
    lines += [f"left over  gen/{name}" for name in sorted(present.keys() - wanted.keys())]
    lines += [
        f"different  gen/{name}"
        for name in sorted(wanted.keys() & present.keys())
        if wanted[name] != present[name]
    ]
    return lines


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            generate(Path(scratch))
        except (ProtocFailed, FileNotFoundError) as error:
            print(f"gen: {error}", file=sys.stderr)
            return 1
        wanted = contents(Path(scratch))
    if arguments == ["--check"]:
        lines = differences(wanted, contents(GEN))
        if lines:
            lines.insert(0, "gen/ is not what proto/ gives; run `make gen` and commit:")
            print(*lines, sep="\n  ", file=sys.stderr)
        return 1 if lines else 0
    install(wanted, GEN)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
