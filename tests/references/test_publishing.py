"""`tcqueue publish-references`: into a folder, and into the buckets of a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from minio import Minio

from server import app
from server.cli import main
from server.cli.publish import publish_references
from server.references.documents import References
from tests.plugins.s3 import S3Server


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(publish_references, arguments, env=environment)


def test_folder_holds_what_is_served(tmp_path: Path) -> None:
    """Every reference and schema is a file under its own path; a second run changes none."""
    first = _run("--to", str(tmp_path))
    assert first.exit_code == 0, first.output
    references = References(app.SERVICES)
    published = {
        "/" + path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert published == {path: references.documents[path].body for path in references.reference_paths()}
    assert f"{len(published)} of them new" in first.output
    assert "0 of them new" in _run("--to", str(tmp_path)).output


def test_changed_file_is_written_again(tmp_path: Path) -> None:
    """What somebody changed is put right, and nothing else is touched."""
    _run("--to", str(tmp_path))
    (tmp_path / "schemas/queue/v1/task.json").write_text("{}")
    assert "1 of them new or changed" in _run("--to", str(tmp_path), "--quiet").output


def test_root_url_makes_the_manifest_absolute(tmp_path: Path) -> None:
    """With `root_url` the manifest names addresses."""
    _run("--to", str(tmp_path), "--root-url", "https://queue.example.com/")
    manifest = json.loads((tmp_path / "references/manifest.json").read_text())
    assert "https://queue.example.com/references/queue/v1/api.json" in manifest["references"]


def test_buckets(s3_server: S3Server, s3_buckets: tuple[Minio, Callable[[], str]]) -> None:
    """Objects have the documents' bytes and type, in the layout of schemas.* and references.* hosts; a
    second run uploads nothing, and a third one only what has been changed."""
    client, make = s3_buckets
    references, schemas = make(), make()

    def run() -> Result:
        return _run(
            TCQUEUE_S3_ENDPOINT=s3_server.endpoint,
            TCQUEUE_S3_REGION=s3_server.region,
            TCQUEUE_S3_ACCESS_KEY=s3_server.access_key,
            TCQUEUE_S3_SECRET_KEY=s3_server.secret_key,
            TCQUEUE_S3_REFERENCES_BUCKET=references,
            TCQUEUE_S3_SCHEMAS_BUCKET=schemas,
        )

    first = run()
    assert first.exit_code == 0, first.output
    wanted = References(app.SERVICES)
    for path in wanted.reference_paths():
        _, kind, key = path.split("/", 2)
        with client.get_object({"references": references, "schemas": schemas}[kind], key) as found:
            assert found.read() == wanted.documents[path].body
            assert found.headers["content-type"] == "application/json"
    assert "0 of them new" in run().output
    client.remove_object(schemas, "queue/v1/task-status.json")
    assert "1 of them new" in run().output


def test_missing_bucket_is_told(s3_server: S3Server) -> None:
    """A bucket that does not exist ends the command with its name and without the secret."""
    result = _run(
        "--s3-references-bucket=absent-one",
        "--s3-schemas-bucket=absent-two",
        TCQUEUE_S3_ENDPOINT=s3_server.endpoint,
        TCQUEUE_S3_ACCESS_KEY=s3_server.access_key,
        TCQUEUE_S3_SECRET_KEY=s3_server.secret_key,
    )
    assert result.exit_code == 1
    assert "there is no bucket absent-one" in result.output
    assert s3_server.secret_key not in result.output.replace("TCQUEUE_S3_SECRET_KEY", "")


def test_wrong_key_is_told(s3_server: S3Server, s3_buckets: tuple[Minio, Callable[[], str]]) -> None:
    """What the store refuses is an error of one line."""
    bucket = s3_buckets[1]()
    result = _run(
        f"--s3-references-bucket={bucket}",
        f"--s3-schemas-bucket={bucket}",
        TCQUEUE_S3_ENDPOINT=s3_server.endpoint,
        TCQUEUE_S3_ACCESS_KEY=s3_server.access_key,
        TCQUEUE_S3_SECRET_KEY="another",
    )
    assert result.exit_code == 1
    assert result.output.startswith("error:")
    assert "Traceback" not in result.output


def test_unset_settings_are_named() -> None:
    """Without settings the command says which are lacking and what else can be done."""
    result = _run(TCQUEUE_S3_ENDPOINT="https://s3.example.com")
    assert result.exit_code == 1
    assert "TCQUEUE_S3_ACCESS_KEY, TCQUEUE_S3_SECRET_KEY" in result.output
    assert "--to FOLDER" in result.output


def test_help_has_examples(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--help` shows what to type."""
    monkeypatch.setattr("sys.argv", ["tcqueue", "publish-references", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "tcqueue publish-references --to public" in capsys.readouterr().out
