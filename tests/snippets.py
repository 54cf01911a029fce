"""The Python in the README and in the docs, as one program a page."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def snippets() -> dict[str, str]:
    """The program of each page by its path from the root: its blocks ```python, every line at its own number."""
    files = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    pages = {file.relative_to(ROOT).as_posix(): program(file.read_text(encoding="utf-8")) for file in files}
    return {page: code for page, code in pages.items() if code.strip()}


def program(text: str) -> str:
    """The blocks of a page, with blank lines for all that is between them."""
    lines, inside = [], False
    for line in text.splitlines():
        if inside and line == "```":
            inside = False
        lines.append(line if inside else "")
        if line == "```python":
            inside = True
    assert len(re.findall(r"^```python$", text, re.MULTILINE)) == len(re.findall("```python", text)), (
        "indented"
    )
    return "\n".join(lines) + "\n"
