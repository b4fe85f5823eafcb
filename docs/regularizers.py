"""Write the catalogue of docs/regularizers.md from the docstrings of src/regbench/regularizers/."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from regbench import catalogue  # noqa: E402

PAGE = ROOT / "docs/regularizers.md"
BLOCK = re.compile(r"(?<=<!-- catalogue -->\n).*(?=<!-- /catalogue -->)", re.DOTALL)
LABEL = re.compile(r"^(?=[A-Z][\w ]*: |Equals )", re.MULTILINE)
"""The start of a line such as `Source: …`, which becomes an item of a list."""


def section(kind: catalogue.Entry) -> str:
    """One kind as Markdown: its name, its docstring, what it covers."""
    first, *others = kind.docstring.split("\n\n")
    *paragraphs, facts = others
    items = [f"- {' '.join(item.split())}" for item in LABEL.split(facts) if item.strip()]
    items.append(f"- Covers, unless a scope says otherwise: `{kind.scope}`.")
    return "\n\n".join([f"### {kind.name}", first, *paragraphs, "\n".join(items)])


def page() -> str:
    """What docs/regularizers.md should be."""
    sections = "\n\n".join(section(kind) for kind in catalogue.kinds().values())
    return BLOCK.sub(lambda _: f"\n{sections}\n\n", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
