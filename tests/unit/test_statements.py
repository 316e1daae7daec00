"""Named statements: how a file is split, and what is refused."""

from __future__ import annotations

from importlib import resources

import pytest

from server.store.statements import StatementError, load, parse


def test_names_comments_and_semicolons() -> None:
    found = parse(
        "-- The head may explain.\n\n"
        "-- name: first\n-- Guarantees nothing.\nselect 1\n  -- inside too\n  from t;\n\n"
        "-- name: second_one\nselect ';' as a, $$;$$ as b\n",
        "x.sql",
    )
    assert dict(found) == {"first": "select 1\n  from t", "second_one": "select ';' as a, $$;$$ as b"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("select 1;\n-- name: a\nselect 2", "x.sql: there is SQL above the first"),
        ("-- name: a\nselect 1;\n-- name: a\nselect 2;", "x.sql: a is there twice"),
        ("-- name: a\n-- nothing but words\n-- name: b\nselect 1", "x.sql: a is empty"),
        ("-- name: Not-Good\nselect 1", "x.sql: 'Not-Good' is not a lower_snake_case name"),
        ("-- name: a\nselect 1; select 2", "x.sql: a holds more than one statement"),
    ],
)
def test_malformed_files_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(StatementError, match=complaint):
        parse(text, "x.sql")


def test_every_file_of_the_package_loads() -> None:
    files = [f.name for f in (resources.files("server.store") / "sql").iterdir() if f.name.endswith(".sql")]
    assert "database.sql" in files
    for name in files:
        assert load(name.removesuffix(".sql")), name


def test_an_unknown_file_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        load("no_such_noun")
