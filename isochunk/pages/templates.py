"""What pages are filled with: templates of a room, and images that lie in the page itself."""

from __future__ import annotations

import base64
from io import BytesIO

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_templates(room: str) -> Environment:
    """Return what fills the templates of a room, as ``isochunk.pages``."""
    return Environment(
        loader=PackageLoader(room, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def data_uri(buffer: BytesIO, kind: str) -> str:
    """Return an image, ``png`` or ``svg+xml``, as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
