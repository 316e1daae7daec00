"""From `proto/` to descriptors, with what it imports taken from the installed wheels.

No network and no copies: google/api, google/protobuf and buf/validate come out of the very packages
that the service runs with, as descriptors, so the rules that are compiled in are the rules that
protovalidate knows. (Its wheel ships neither a .proto nor a _pb2, only the descriptor.)
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import protovalidate
from google.api import annotations_pb2
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from protobuf import DescFile

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
STAGING = ROOT / ".staging"

VALIDATE = "buf/validate/validate.proto"


class ProtocFailed(Exception):
    """protoc refused; it has said why on standard error."""


def sources(root: Path = PROTO) -> list[str]:
    """The .proto files below `root` by their import names, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.proto"))


def imports() -> FileDescriptorSet:
    """All files that ours may import, each after the files that it imports itself."""
    files: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        for imported in file.dependencies:
            add(imported)
        if file.name not in files:
            files[file.name] = FileDescriptorProto()
            file.CopyToProto(files[file.name])

    def add_from_protovalidate(file: DescFile) -> None:
        for imported in file.dependencies:
            add_from_protovalidate(imported)
        if file.name not in files:
            files[file.name] = FileDescriptorProto.FromString(file.proto.to_binary())

    add(annotations_pb2.DESCRIPTOR)
    add(timestamp_pb2.DESCRIPTOR)
    add_from_protovalidate(protovalidate.ViolationPb.desc().file)
    return FileDescriptorSet(file=files.values())


def stage() -> Path:
    """Writes the imports to the ignored folder; returns that file, a FileDescriptorSet."""
    STAGING.mkdir(exist_ok=True)
    target = STAGING / "imports.binpb"
    target.write_bytes(imports().SerializeToString(deterministic=True))
    return target


def run_protoc(proto: Path, files: Sequence[str], *arguments: str) -> None:
    """Runs protoc over `files` below the folder `proto`. Raises ProtocFailed."""
    if protoc.main(["protoc", f"--proto_path={proto}", f"--descriptor_set_in={stage()}", *arguments, *files]):
        raise ProtocFailed(f"protoc failed on {proto}")


def image(proto: Path, target: Path) -> Path:
    """Compiles every file below `proto` with comments into `target`, which buf reads as an image."""
    run_protoc(
        proto, sources(proto), "--include_imports", "--include_source_info", f"--descriptor_set_out={target}"
    )
    return target


def script(name: str) -> str:
    """Where this environment keeps the command `name`. Raises FileNotFoundError."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; `make .venv/.dev` installs it")
    return found
