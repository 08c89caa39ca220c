"""A row of a comparison: the numbers of one setting and one quantity."""

import math
from typing import Any

Row = dict[str, Any]


def finite(row: Row) -> Row:
    """The row with None for NaN and infinities, which JSON lacks."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
