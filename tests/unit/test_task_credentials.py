"""Task credentials as claims hand them out (auth.md 9, queue.md 1.7)."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from server.domain.scopes import ScopeSet
from server.identity.certificates import Issuer, derive_access_token, verify
from server.identity.model import epoch_ms, from_epoch_ms
from server.identity.task_credentials import TaskCredentialIssuer

QUEUE = "static/tcqueue/queue"
TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
TASK = "fN1SbArXTPSVFNUvaOlinQ"
NOW = from_epoch_ms(1735787045000)


@pytest.mark.parametrize(
    ("taken_until_ms", "printed"),
    [
        (1735788245000, "1735788245"),
        (1735788245123, "1735788245.123"),
        (1735788245120, "1735788245.12"),
        (1735788245100, "1735788245.1"),
        (1735788245001, "1735788245.001"),
        (1735788245999, "1735788245.999"),
    ],
)
def test_the_name_tells_task_run_worker_and_end(taken_until_ms: int, printed: str) -> None:
    issuer = TaskCredentialIssuer(QUEUE, TOKEN)
    credentials = issuer.issue(TASK, 3, "wg", "wid", from_epoch_ms(taken_until_ms), [], NOW)
    assert credentials.client_id == f"task-client/{TASK}/3/on/wg/wid/until/{printed}"
    certificate = json.loads(credentials.certificate)
    assert (certificate["start"], certificate["expiry"]) == (epoch_ms(NOW), taken_until_ms)


def test_scopes_are_those_of_the_run_then_the_tasks_in_order_with_duplicates() -> None:
    credentials = TaskCredentialIssuer(QUEUE, TOKEN).issue(
        TASK, 0, "wg", "wid", NOW + timedelta(seconds=1200), ["z", "a*", "z"], NOW
    )
    certificate = json.loads(credentials.certificate)
    assert certificate["scopes"] == [
        f"queue:reclaim-task:{TASK}/0",
        f"queue:resolve-task:{TASK}/0",
        f"queue:create-artifact:{TASK}/0",
        "z",
        "a*",
        "z",
    ]
    assert certificate["issuer"] == QUEUE


def test_they_verify_against_the_queue_itself_and_each_has_its_own_key() -> None:
    issuer = TaskCredentialIssuer(QUEUE, TOKEN)
    until = NOW + timedelta(seconds=1)
    first, second = (issuer.issue(TASK, 0, "wg", "wid", until, ['odd "scope" \\'], NOW) for _ in range(2))
    assert first.access_token != second.access_token
    for credentials in (first, second):
        certificate = json.loads(credentials.certificate)
        verified = verify(
            certificate,
            client_id=credentials.client_id,
            issuer=Issuer(QUEUE, TOKEN, ScopeSet(["*"]), math.inf),
            now_ms=epoch_ms(NOW),
        )
        assert verified.expires == until.timestamp()
        assert derive_access_token(TOKEN, certificate["seed"]) == credentials.access_token


def test_instants_become_milliseconds_whatever_their_zone_and_finer_digits_are_cut() -> None:
    instant = datetime(2025, 1, 2, 3, 4, 5, 123999, tzinfo=timezone(timedelta(hours=2)))
    assert epoch_ms(instant) == 1735779845123
    assert from_epoch_ms(1735779845123) == datetime(2025, 1, 2, 1, 4, 5, 123000, tzinfo=UTC)
