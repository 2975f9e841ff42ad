"""Check of ``docs/README.md`` against the zoo's template."""

from __future__ import annotations

import re
from pathlib import Path

from bundle.zoo.failure import CheckError

#: Sections of the template in its order; those marked False are optional in it.
SECTIONS = {
    "Authors": True,
    "Tags": True,
    "Model Description": True,
    "Data": True,
    "Performance": True,
    "Additional Usage Steps": False,
    "System Configuration": True,
    "Limitations": False,
    "Citation Info": False,
    "References": False,
}
_HEADING = re.compile(r"(#+)\s+(.*)")
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def readme(folder: Path) -> None:
    """A title, then the template's sections in its order, each with text; links lead to files of the bundle."""
    path = folder / "docs" / "README.md"
    text = path.read_text(encoding="utf-8")
    headings = _headings(text)
    if not headings or headings[0][0] != 1:
        raise CheckError("docs/README.md has no title")
    titles = [title for _, title, _ in headings]
    for section, required in SECTIONS.items():
        if required and section not in titles:
            raise CheckError(f"docs/README.md has no section {section}")
    found = [title for title in titles if title in SECTIONS]
    if found != [section for section in SECTIONS if section in found]:
        raise CheckError(f"docs/README.md has its sections in another order than the template: {', '.join(found)}")
    empty = [title for _, title, body in headings if title in SECTIONS and not body]
    if empty:
        raise CheckError(f"docs/README.md says nothing under {empty[0]}")
    for link in _LINK.findall(text):
        if not (path.parent / link.partition("#")[0]).exists():
            raise CheckError(f"docs/README.md links to {link}, which the bundle does not have")


def _headings(text: str) -> list[tuple[int, str, bool]]:
    """Level and plain title of each heading, and whether a line of text follows it; code blocks hold none."""
    headings: list[tuple[int, str, bool]] = []
    code = False
    for line in text.splitlines():
        code ^= line.startswith("```")
        if not code and (found := _HEADING.fullmatch(line)):
            headings.append((len(found[1]), found[2].replace("*", "").replace("(Optional)", "").strip(), False))
        elif line.strip() and headings:
            headings[-1] = (*headings[-1][:2], True)
    return headings
