from __future__ import annotations
from server.store.database import Database


async def test_first(db: Database) -> None:
    assert await db.fetch("select $1::int, $2::text[], now() is not null", [3, ["a", 'b"\\']]) == [
        (3, ["a", 'b"\\'], True)
    ]
    async with db.transaction() as tx:
        assert await tx.pipeline([("select 1", ()), ("select 2", ())]) == [[(1,)], [(2,)]]
        assert await tx.run("select 3", commit=True) == [(3,)]
