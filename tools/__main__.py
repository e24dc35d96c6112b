"""Write every generated file anew: `make docs`. Tests hold the files equal to what this writes."""

from __future__ import annotations

from pathlib import Path

from tools import configuration, families, glossary, reference

NOTES = Path("docs/reference.yaml")


def files() -> dict[Path, str]:
    """Each generated file as it should be now, by its path from the root of the repository."""
    return {
        Path("configs/default.yaml"): configuration.text(),
        Path("docs/reference.md"): reference.page(NOTES),
        Path("docs/glossary.md"): glossary.page(),
        Path("docs/families.md"): families.page(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
