"""`tcqueue publish-references`: what the deployment says about itself, copied to where it is served from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from server.cli.base import CONTEXT, CommandError
from server.cli.settings import read_settings, settings_options
from server.config import Settings
from server.references.publishing import Buckets, Folder, Target, publish

_OPTIONS = settings_options(
    ["root_url", "s3_endpoint", "s3_region", "s3_references_bucket", "s3_schemas_bucket"]
)


@click.command(
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue publish-references --to public
  TCQUEUE_S3_ACCESS_KEY=... TCQUEUE_S3_SECRET_KEY=... tcqueue publish-references \\
      --s3-endpoint https://s3.us-west-2.amazonaws.com --s3-region us-west-2 \\
      --s3-references-bucket references.example.com --s3-schemas-bucket schemas.example.com

\b
The key needs s3:PutObject, s3:GetObject and s3:ListBucket on both buckets, which must exist; to let
the world read them is up to their policies. A second run uploads only what has changed.
""",
)
@_OPTIONS
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write to a folder.")
@click.option("-q", "--quiet", is_flag=True, help="Say only how many were published.")
def publish_references(folder: Path | None, quiet: bool, **overrides: Any) -> None:
    """Publish references and schemas to S3 or a folder.

    They are what the HTTP door serves under /references and /schemas.
    """
    from server.app import SERVICES
    from server.references.documents import References, exchange_prefixes

    settings = read_settings(**overrides)
    references = References(SERVICES, settings.root_url, exchange_prefixes(SERVICES, settings))
    documents = {path: references.documents[path] for path in references.reference_paths()}
    target: Target = Folder(folder) if folder is not None else _buckets(settings)
    changed = 0
    try:
        for path, new in publish(documents, target):
            changed += new
            if not quiet:
                mark = click.style("new ", fg="green") if new else click.style("same", dim=True)
                click.echo(f"{mark}  {path}")
    except Exception as e:
        raise _failure(e, settings) from e
    where = str(folder) if folder is not None else settings.s3_endpoint
    click.echo(f"{len(documents)} documents in {where}, {changed} of them new or changed")


def _buckets(settings: Settings) -> Buckets:
    """The buckets of the settings, seen to exist. Raises CommandError."""
    from minio import Minio

    needed = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_references_bucket", "s3_schemas_bucket")
    lacking = [f"TCQUEUE_{name.upper()}" for name in needed if not getattr(settings, name)]
    if lacking:
        raise CommandError(f"not set: {', '.join(lacking)}", "`--to FOLDER` writes to a folder instead.")
    url = urlsplit(settings.s3_endpoint)
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
        raise CommandError("TCQUEUE_S3_ENDPOINT takes a URL without a path, such as https://s3.example.com")
    client = Minio(
        url.netloc,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        region=settings.s3_region,
        secure=url.scheme == "https",
    )
    buckets = Buckets(client, references=settings.s3_references_bucket, schemas=settings.s3_schemas_bucket)
    try:
        missing = buckets.missing()
    except Exception as e:
        raise _failure(e, settings) from e
    if missing:
        raise CommandError(f"there is no bucket {missing[0]} at {settings.s3_endpoint}")
    return buckets


def _failure(error: Exception, settings: Settings) -> Exception:
    """The error as commands tell it: what S3, the network or the file system refused. Anything else is a
    mistake of ours and stays what it is."""
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    if isinstance(error, MinioException | HTTPError):
        text = getattr(error, "message", None) or str(error)
        return CommandError(f"{settings.s3_endpoint}: {text}")
    if isinstance(error, OSError):
        return CommandError(str(error))
    return error
