"""A report as one HTML file, from a Jinja template."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vipolyqwen_core.written_aside import written_aside


def write_page(path: Path, template: Path, **content: Any) -> None:
    """Fill a template and write the page; all values are escaped, and a name that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template.name).render(**content)
    with written_aside(path) as aside:
        aside.write_text(html, encoding="utf-8")
