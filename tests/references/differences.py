"""Where our references and schemas differ from the published ones on purpose, and why.

Keys are patterns of `fnmatch` over the lines of `comparing.differences`, cut at the first colon. A line that
no pattern covers fails the test, and so does a pattern that covers no line.
"""

from __future__ import annotations

_OLDER = "kept for clients of older releases, which call it"
_UNCHECKED = "refuses next to nothing: most texts are a regular expression; the pattern is checked"

_ACTIONS = "`actions` is sent, empty, to clients of older releases, whose schemas demand it"
_ELSEWHERE = "hands out credentials of other services, which a queue's users do not ask it for"
_IN_PLACE = "holds definitions of parts, which are spelled out where they are used"
_SEED = "of the first release, kept for its clients"

DELIBERATE = {
    **{
        f"/references/auth/v1/api.json/{name}": _ELSEWHERE
        for name in (
            *("awsS3Credentials", "azureAccounts", "azureContainerSAS", "azureContainers", "azureTableSAS"),
            *("azureTables", "gcpCredentials", "githubRepoToken", "sentryDSN", "websocktunnelToken"),
        )
    },
    "/references/auth/v1/api.json/getCredentials": _SEED,
    "/references/auth/v1/api.json/inspect": _SEED,
    "/schemas/auth/v1/client-credentials-response.json": _SEED,
    "/schemas/auth/v1/client-scopes-response.json": _SEED,
    "/schemas/auth/v1/get-entity-history-response.json": (
        "the published reference names it, and the copy compared with lacks it"
    ),
    "/schemas/auth/v1/authenticate-hawk-request.json/properties/host/format": "may be an IPv4 address, too",
    "/schemas/auth/v1/test-authenticate-request.json/properties/*Scopes/default": (
        "both are required, and a default for a required member says nothing"
    ),
    "/schemas/auth/v1/authenticate-hawk-response.json/oneOf/*/properties/hash/type": (
        "a payload hash is base64 text, spelled out"
    ),
    "/schemas/auth/v1/*-message.json/properties/version/type": "implied by its one value, spelled out",
    "/references/queue/v1/api.json/declareProvisioner": _OLDER,
    "/references/queue/v1/api.json/declareWorkerType": _OLDER,
    "/schemas/queue/v1/update-provisioner-request.json": _OLDER,
    "/schemas/queue/v1/update-workertype-request.json": _OLDER,
    "/schemas/queue/v1/poll-task-urls-response.json": "no method has answered with it since claim-work",
    "/schemas/queue/v1/create-task-request.json/properties/priority/enum": (
        "`normal` is taken as older releases did, and stored as `lowest`"
    ),
    "/schemas/queue/v1/create-task-request.json/properties/payload/default": (
        "a default for a required member says nothing, and this one is a list where an object is wanted"
    ),
    "/schemas/queue/v1/claim-work-request.json/required": (
        "`tasks` has a default, which stands in before the check: it may be left out"
    ),
    "/schemas/queue/v1/update-worker-request.json/required": "older releases took an empty body",
    "/schemas/queue/v1/*/properties/actions": _ACTIONS,
    "/schemas/queue/v1/provisioner-response.json/required": _ACTIONS,
    "/schemas/queue/v1/list-provisioners-response.json/*/required": _ACTIONS,
    "/schemas/queue/v1/worker-response.json/required": "taskQueueId and `actions` are always sent",
    "/schemas/queue/v1/worker-response.json/properties/quarantineDetails": "was declared and is never sent",
    "/schemas/queue/v1/get-artifact-response.json/properties/storageType/enum": "all there are, spelled out",
    "/schemas/queue/v1/artifact-content-response.json/oneOf/*/properties/reason/enum": (
        "all that can be given when an error artifact is created, spelled out"
    ),
    "/schemas/queue/v1/post-artifact-request.json/oneOf/*/properties/artifact/m??Length": (
        "a link to a name that no artifact can have is refused at once"
    ),
    "/schemas/queue/v1/task-metadata.json/properties/source/anyOf": _UNCHECKED,
    "/schemas/object/v1/download-method-*.json": _IN_PLACE,
    "/schemas/object/v1/hashes.json": _IN_PLACE,
    "/schemas/object/v1/upload-method-*.json": _IN_PLACE,
    "/schemas/object/v1/*/hashes/additionalProperties": "all values are texts, as all known callers send",
    "/schemas/object/v1/create-upload-response.json/properties/uploadMethod/m??Properties": (
        "that one method at most is chosen is said in words"
    ),
    "/schemas/queue/v1/*/metadata/properties/source/anyOf": _UNCHECKED,
}
