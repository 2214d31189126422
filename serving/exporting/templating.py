"""The files of a deployment that are made from templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def render(template: str, filters: dict[str, Callable[[str], str]] | None = None, **values: Any) -> str:
    """Return the text of a template in `templates`; a name that it uses and `values` lacks is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  (no HTML: names are letters, digits, '.', '_' and '-'; the card's filters escape)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template).render(**values)
