"""The little HTML that the page needs: elements as text, and the markdown of proto comments."""

from __future__ import annotations

import html
import re

_CODE = re.compile(r"`([^`]+)`")
_STRONG = re.compile(r"\*\*([^*]+)\*\*")


def text(value: object) -> str:
    """Escaped for content and for attributes."""
    return html.escape(str(value), quote=True)


def element(name: str, *children: str, **attributes: str) -> str:
    """An element around HTML; `class_` is the attribute `class`, `data_x` is `data-x`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells that scrolls by itself where it is too wide; empty without rows."""
    if not rows:
        return ""
    head = element("thead", element("tr", *(element("th", h, scope="col") for h in heads)))
    body = element("tbody", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))
    return element("div", element("table", head, body), class_="wide")


def inline(markdown: str) -> str:
    """Code and strong words of one paragraph."""
    return _STRONG.sub(r"<strong>\1</strong>", _CODE.sub(r"<code>\1</code>", text(markdown)))


def markdown(source: str) -> str:
    """Paragraphs and lists."""
    blocks = []
    for block in filter(None, (part.strip() for part in re.split(r"\n+", source))):
        if block[0] in "*-" and block[1:2] == " ":
            blocks.append(element("ul", element("li", inline(block[2:]))))
        else:
            blocks.append(element("p", inline(block)))
    return "".join(blocks).replace("</ul><ul>", "")
