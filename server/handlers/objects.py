"""The object service's methods (object.md 2)."""

from __future__ import annotations

import binascii
from base64 import b64decode

from server.call import Call
from server.errors import InputError, InputValidationError, Violation
from server.handlers import inputs
from server.objects.service import Objects, Proposal, upload_meta
from server.views import stamp
from tcqueue.v1.object_pb2 import (
    CreateUploadRequest,
    CreateUploadResponse,
    DownloadRequest,
    DownloadResponse,
    FinishUploadRequest,
    FinishUploadResponse,
    GetObjectRequest,
    GetObjectResponse,
    ProposedUploadMethods,
    StartDownloadRequest,
    StartDownloadResponse,
)

_URL_SAFE = str.maketrans("-_", "+/")


async def create_upload(call: Call, request: CreateUploadRequest) -> CreateUploadResponse:
    """Opens an upload, or goes on with it."""
    call.authorize({"projectId": request.project_id, "name": request.name})
    chosen = await _objects(call).create_upload(
        _name(request.name),
        request.project_id,
        request.upload_id,
        inputs.instant(request.expires, "expires"),
        _hashes(request.hashes),
        _proposal(request.proposed_upload_methods),
    )
    response = CreateUploadResponse(
        project_id=request.project_id, upload_id=request.upload_id, expires=request.expires
    )
    response.upload_method.SetInParent()
    if chosen.stored:
        response.upload_method.data_inline = True
    elif chosen.expires is not None:
        put = response.upload_method.put_url
        put.url = chosen.url
        put.expires.CopyFrom(stamp(chosen.expires))
        put.headers.update(chosen.headers or {})
    return response


async def finish_upload(call: Call, request: FinishUploadRequest) -> FinishUploadResponse:
    """Ends an upload."""
    call.authorize({"projectId": request.project_id, "name": request.name})
    await _objects(call).finish_upload(
        _name(request.name), request.project_id, request.upload_id, _hashes(request.hashes)
    )
    return FinishUploadResponse()


async def start_download(call: Call, request: StartDownloadRequest) -> StartDownloadResponse:
    """The best way to download that the caller knows."""
    accepted = request.accept_download_methods
    found = await _objects(call).start_download(
        request.name, get_url=accepted.get_url, simple=accepted.simple
    )
    if found.expires is None:
        return StartDownloadResponse(method="simple", url=found.url)
    response = StartDownloadResponse(method="getUrl", url=found.url, expires=stamp(found.expires))
    response.hashes.SetInParent()
    response.hashes.hashes.update(found.hashes or {})
    return response


async def get_object(call: Call, request: GetObjectRequest) -> GetObjectResponse:
    """What is known of a finished object."""
    found = await _objects(call).read(request.name)
    return GetObjectResponse(project_id=found.project_id, expires=stamp(found.expires), hashes=found.hashes)


async def download(call: Call, request: DownloadRequest) -> DownloadResponse:
    """Where an object's data is."""
    found = await _objects(call).start_download(request.name, get_url=False, simple=True)
    return DownloadResponse(url=found.url)


def _objects(call: Call) -> Objects:
    return call.services.own_objects


def _name(name: str) -> str:
    if len(name) > inputs.MAX_OBJECT_NAME:
        raise InputError(f"an object's name has at most {inputs.MAX_OBJECT_NAME} characters")
    return name


def _hashes(hashes: object) -> dict[str, str]:
    given: dict[str, str] = dict(hashes)  # type: ignore[call-overload]
    for algorithm, value in given.items():
        inputs.text(algorithm, "hashes")
        inputs.text(value, f"hashes.{algorithm}")
    return given


def _proposal(proposed: ProposedUploadMethods) -> Proposal:
    inline, put = None, None
    if proposed.HasField("data_inline"):
        inline = (upload_meta(_content_type(proposed.data_inline.content_type)), _data(proposed))
    if proposed.HasField("put_url"):
        length = proposed.put_url.content_length
        if length < 0:
            raise _refused("putUrl/contentLength", "must not be negative")
        put = (upload_meta(_content_type(proposed.put_url.content_type)), length)
    return Proposal(inline, put)


def _content_type(text: str) -> str:
    if not text.isascii() or not text.isprintable() or len(text) > 255:
        raise _refused("contentType", "must be at most 255 characters of printable ASCII")
    return text


def _data(proposed: ProposedUploadMethods) -> bytes:
    text = proposed.data_inline.object_data.translate(_URL_SAFE).rstrip("=")
    try:
        return b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _refused("dataInline/objectData", "must be base64") from None


def _refused(field: str, description: str) -> InputValidationError:
    return InputValidationError(f"{field} {description}", [Violation(field, description)])
