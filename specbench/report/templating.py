"""Where the pages come from: jinja2 templates beside this file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from specbench import text


def template(name: str, *, html: bool = False) -> Template:
    """The template `name` below `templates/`; a value that it misses is an error."""
    environment = Environment(
        loader=PackageLoader("specbench.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=html,  # in Markdown, names are escaped where they enter a sentence
    )
    environment.filters["cell"] = text.cell
    return environment.get_template(name)
