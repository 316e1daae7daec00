"""Roles (auth.md 5.1, 7: A-046 to A-054)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.client.credentials import Credentials
from tests.conformance.door import refused
from tests.plugins.server import Caller, Queue


async def make(queue: Queue, role_id: str, *scopes: str, description: str = "") -> Any:
    """A new role."""
    request = {"role_id": role_id, "description": description, "scopes": {"scopes": scopes}}
    return (await queue("CreateRole", **request)).role


async def test_create(queue: Queue) -> None:
    """A-046: sorted, redundant scopes kept; an equal repeat is the same role, another one a conflict."""
    made = await make(queue, "r", "t", "s", "s*")
    assert list(made.scopes) == ["s*", "s", "t"]
    assert list(made.expanded_scopes) == ["assume:r", "s*", "t"]
    assert await make(queue, "r", "s", "s*", "t") == made
    assert (await queue("GetRole", role_id="r")).role == made
    for scopes, description in ((("s",), ""), (("t", "s", "s*"), "other")):
        with refused("RequestConflict", "Role already exists"):
            await make(queue, "r", *scopes, description=description)
    with refused("ResourceNotFound", "Role not found"):
        await queue("GetRole", role_id="none")


async def test_who_may(queue: Queue) -> None:
    """A-046 A-052: the id's scope and every scope given; for updates, what the old ones' expansion lacks."""
    await make(queue, "base", "x:*")
    maker = queue.having("auth:create-role:ci/*", "auth:update-role:ci/*", "a:*")
    request = {"role_id": "ci/r", "description": ""}
    with refused("InsufficientScopes"):
        await maker("CreateRole", **request, scopes={"scopes": ["a:b", "x:1"]})
    with refused("InsufficientScopes"):
        await maker("CreateRole", role_id="other", description="", scopes={"scopes": ["a:b"]})
    await queue("CreateRole", **request, scopes={"scopes": ["assume:base"]})
    changed = await maker("UpdateRole", **request, scopes={"scopes": ["x:1", "a:b"]})
    assert list(changed.role.scopes) == ["a:b", "x:1"]
    with refused("InsufficientScopes"):
        await maker("UpdateRole", **request, scopes={"scopes": ["x:2"]})
    with refused("ResourceNotFound"):
        await maker("UpdateRole", role_id="ci/none", description="", scopes={"scopes": []})


async def test_a_role_for_a_prefix(queue: Queue) -> None:
    """A-047."""
    await make(queue, "repo:*", "queue:route:<..>.latest")
    expanded = await queue("ExpandScopes", scopes={"scopes": ["assume:repo:acme"]})
    assert list(expanded.scopes) == ["assume:repo:acme", "queue:route:acme.latest"]


async def test_odd_ids(queue: Queue) -> None:
    """A-048: spaces, question marks, slashes, stars and percent signs."""
    for odd in ("a b", "what?", "a/b/c", "x*", "50%", "a+b", "#"):
        assert (await make(queue, odd, "s")).role_id == odd
        assert (await queue("GetRole", role_id=odd)).role.role_id == odd
    with refused("InvalidRequestArguments"):
        await make(queue, "ä")


async def test_cycles(queue: Queue) -> None:
    """A-049: also by parameters, on creation and on update; judged once the caller may."""
    with refused("InputError", "Roles may not contain dependency cycles"):
        await make(queue, "t-*", "assume:<..>")
    await make(queue, "a", "assume:b")
    with refused("InputError", "'assume:a' -> 'assume:b' -> 'assume:a'"):
        await make(queue, "b", "assume:a")
    await make(queue, "b", "x")
    with refused("InputError"):
        await queue("UpdateRole", role_id="b", description="", scopes={"scopes": ["assume:a"]})
    with refused("InsufficientScopes"):
        await queue.having("auth:update-role:b")(
            "UpdateRole", role_id="b", description="", scopes={"scopes": ["assume:a"]}
        )


async def test_when_a_role_is_judged(queue: Queue) -> None:
    """auth.md 5.1, 7: parameters and cycles come after authorization, and after what is there already."""
    maker = queue.having("auth:create-role:*", "auth:update-role:*")
    for scopes in (["x<..>y<..>"], ["*<..>"], ["assume:<..>"]):
        request = {"role_id": "some*", "description": "", "scopes": {"scopes": scopes}}
        with refused("InsufficientScopes"):
            await maker("CreateRole", **request)
        with refused("ResourceNotFound"):
            await queue("UpdateRole", **request)
    await make(queue, "some*", "s")
    with refused("InsufficientScopes"):
        await maker("UpdateRole", **request)
    for scopes in (["x<..>y<..>"], ["*<..>"], ["assume:<..>"]):
        with refused("RequestConflict"):
            await make(queue, "some*", *scopes)
        with refused("InputError"):
            await queue("UpdateRole", role_id="some*", description="", scopes={"scopes": scopes})


@pytest.mark.parametrize("scopes", [["a**"], ["x<..>y<..>"], ["*<..>"]], ids=str)
async def test_forbidden_scopes(queue: Queue, scopes: list[str]) -> None:
    """auth.md 5.1."""
    with refused("InputError"):
        await make(queue, "some*", *scopes)


async def test_what_is_wrong_comes_before_who_asks(queue: Queue) -> None:
    """auth.md 7: two stars are refused to whoever sends them, updates of a role that is not there too."""
    wrong = Caller(queue.door, Credentials("root", "wrong" * 5))
    for method in ("CreateRole", "UpdateRole"):
        with refused("InputError", "scopes must not end with `**`"):
            await wrong(method, role_id="r", description="", scopes={"scopes": ["a**"]})
    with refused("ResourceNotFound"):
        await wrong("UpdateRole", role_id="r", description="", scopes={"scopes": []})
    await make(queue, "r")
    for method in ("CreateRole", "UpdateRole"):
        with refused("AuthenticationFailed"):
            await wrong(method, role_id="r", description="", scopes={"scopes": []})


@pytest.mark.parametrize("scopes", [["a\n"], ["a\nb"], ["\t"], ["\r"], ["é"], ["a", "a"]], ids=repr)
async def test_what_is_no_scope(queue: Queue, scopes: list[str]) -> None:
    """A-050."""
    with refused("InputValidationError"):
        await make(queue, "r", *scopes)
    with refused("InputValidationError"):
        await queue("ExpandScopes", scopes={"scopes": scopes})


async def test_lists(queue: Queue) -> None:
    """A-051: all at once, in pages, and only the ids."""
    for role_id in ("c", "a", "b"):
        await make(queue, role_id, "s")
    everything = (await queue("ListRoles")).roles
    assert [role.role_id for role in everything] == ["a", "b", "c"]
    for method, field in (("ListRolesPage", "roles"), ("ListRoleIds", "role_ids")):
        first = await queue(method, limit=2)
        rest = await queue(method, continuation_token=first.continuation_token)
        found = [*getattr(first, field), *getattr(rest, field)]
        assert [getattr(one, "role_id", one) for one in found] == ["a", "b", "c"]
        assert not rest.continuation_token
        assert not (await queue(method, limit=3)).continuation_token
        for bad in ("%", "abc"):
            with refused("InputError"):
                await queue(method, continuation_token=bad)


async def test_delete(queue: Queue) -> None:
    """A-053: twice; what it gave is gone at once."""
    await make(queue, "r", "s")
    for _ in range(2):
        await queue("DeleteRole", role_id="r")
    assert list((await queue("ExpandScopes", scopes={"scopes": ["assume:r"]})).scopes) == ["assume:r"]


EXPANSIONS = {
    "assume:repo:acme/web": [
        "assume:project:web",
        "assume:repo:acme/web",
        "queue:create-task:low:web/*",
        "queue:route:index.acme.web.latest",
        "queue:scheduler-id:acme",
        "secrets:get:project/web/token",
    ],
    "assume:repo:acme/w*": [
        "assume:project:w*",
        "assume:repo:acme/w*",
        "queue:create-task:low:web/*",
        "queue:route:index.acme.w*",
        "queue:scheduler-id:acme",
        "secrets:get:project/w*",
    ],
    "assume:repo:acme/": [
        "assume:project:",
        "assume:repo:acme/",
        "queue:route:index.acme..latest",
        "queue:scheduler-id:acme",
        "secrets:get:project//token",
    ],
    "assume:repo:acme": ["assume:repo:acme"],
}


async def test_expansions(queue: Queue) -> None:
    """A-054 A-055: the worked ones; of nothing comes nothing."""
    await make(
        queue,
        "repo:acme/*",
        "queue:route:index.acme.<..>.latest",
        "assume:project:<..>",
        "queue:scheduler-id:acme",
    )
    await make(queue, "project:web", "queue:create-task:low:web/*")
    await make(queue, "project:*", "secrets:get:project/<..>/token")
    for scope, expected in EXPANSIONS.items():
        assert list((await queue("ExpandScopes", scopes={"scopes": [scope]})).scopes) == expected
    assert list((await queue("ExpandScopes", scopes={"scopes": []})).scopes) == []


async def test_current_scopes(queue: Queue) -> None:
    """A-056: root has everything; who narrows itself keeps what everyone has. A-024."""
    assert list((await queue("CurrentScopes")).scopes) == ["*"]
    narrowed = queue.having("auth:current-scopes")
    assert list((await narrowed("CurrentScopes")).scopes) == ["assume:anonymous", "auth:current-scopes"]
    with refused("InsufficientScopes"):
        await queue.having()("CurrentScopes")
    await make(queue, "anonymous", "auth:current-scopes")
    expected = ["assume:anonymous", "auth:current-scopes"]
    assert list((await queue.having()("CurrentScopes")).scopes) == expected
    assert list((await queue.anonymous("CurrentScopes")).scopes) == expected


async def test_messages(queue: Queue) -> None:
    """A-060."""
    await queue.published()
    await make(queue, "r", "s")
    await make(queue, "r", "s")
    await queue("UpdateRole", role_id="r", description="", scopes={"scopes": []})
    await queue("DeleteRole", role_id="r")
    events = await queue.published()
    assert events.exchanges == ["role-created", "role-created", "role-updated", "role-deleted"]
    assert all((e.key, e.payload) == ("", {"version": 1, "roleId": "r"}) for e in events)


async def test_equal_creations_at_once(queue: Queue) -> None:
    """auth.md 7: they leave one role."""
    made = await asyncio.gather(*(make(queue, "r", "s") for _ in range(8)))
    assert all(role == made[0] for role in made)
    assert len((await queue("ListRoles")).roles) == 1
