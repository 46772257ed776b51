"""Text and data made safe to stand inside HTML.

Everything that reaches a page is one of two things: text (`text`: escaped for element bodies and quoted attributes) or
data (`json_block`: JSON in a script element that no browser executes). JSON is written in ASCII with `<`, `>` and `&`
as `\\u003c` and so on, so that neither `</script>` nor `<!--` can end or alter the element, whatever a token contains.
"""

import html
import json
import re

from interp.sealing import finite

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def text(value: object) -> str:
    """`value` as HTML text; control characters and lone surrogates, which HTML cannot hold, become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def slug(title: str) -> str:
    """An id for a title: `"CE, clean and spliced"` → `"ce-clean-and-spliced"`."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"


def json_text(value: object) -> str:
    """JSON that may stand in a script element; NaN and infinities, which JSON does not have, become null."""
    dumped = json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # `<`, `>` and `&` stand only inside JSON strings, where the \u form means the same character.
    return re.sub("[<>&]", lambda match: _UNSAFE[match[0]], dumped)


def json_block(value: object, *, id: str) -> str:
    """A `<script type="application/json">` element holding `value`."""
    return f'<script type="application/json" id="{text(id)}">{json_text(value)}</script>'
