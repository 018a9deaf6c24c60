"""Rows of results as pandas DataFrames. pandas is optional and imported when it is used."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nanogpt.errors import BadEnvironment

if TYPE_CHECKING:
    import pandas as pd


def to_frame(rows: Sequence[Mapping[str, Any]], index: str) -> "pd.DataFrame":
    """Return one line per row, in order, indexed by the column `index`. Raises BadEnvironment without pandas."""
    try:
        import pandas as pd
    except ImportError:
        raise BadEnvironment("pandas is not installed: pip install pandas") from None
    frame = pd.DataFrame.from_records([dict(row) for row in rows])
    return frame.set_index(index) if len(frame) else pd.DataFrame(index=pd.Index([], name=index))
