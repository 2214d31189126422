"""JSON with one spelling for one content, so that its digest and its diffs mean something."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Write a value as JSON: keys sorted, two spaces, UTF-8 left as it is, a newline at the end.

    Raises:
        ValueError: a NaN or an infinity, which JSON has no word for; write `None` where a figure is undefined.
        TypeError: something that is not JSON, such as a NumPy scalar.
    """
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
