"""Pages from templates: self-contained HTML, no scripts, pictures as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from effc.figures import human_bytes, human_count, human_time

__all__ = ["render_page"]


def render_page(template: str, **values: Any) -> str:
    """A page as HTML.

    Args:
        template: File below ``templates/``.
        values: What it shows; a missing one is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_template),
    )
    environment.filters |= {
        "bytes": human_bytes,
        "count": human_count,
        "shape": lambda shape: "x".join(map(str, shape)) or "scalar",
        "time": human_time,
        "config": _config_text,
        "percent": lambda share: f"{100 * share:.1f} %",
    }
    return environment.get_template(template).render(values)


def _template(name: str) -> str:
    return resources.files("effc").joinpath(f"templates/{name}").read_text("utf-8")


def _config_text(config: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in config.items())
