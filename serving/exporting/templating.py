"""Text that is made from templates: the files of a deployment, the model card, the page of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def render(
    template: str, filters: Mapping[str, Callable[..., str]] = {}, folder: Path = TEMPLATES, **values: Any
) -> str:
    """Return the text of a template in a folder; a name that it uses and `values` lacks is an error.

    HTML is escaped. Nothing else is: names are letters, digits, '.', '_' and '-', and the model card's filters escape.
    """
    import jinja2

    html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=html,  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)
