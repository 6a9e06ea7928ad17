"""Files that are not read, such as the exports of annotation tools: how to make a table of them."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UserError

_READ = {".xlsx": "read_excel({})", ".xls": "read_excel({})", ".ods": "read_excel({})", ".json": "read_json({})",
         ".jsonl": "read_json({}, lines=True)", ".ndjson": "read_json({}, lines=True)", ".feather": "read_feather({})",
         ".zip": "read_csv({})", ".gz": "read_csv({})", ".txt": 'read_csv({}, sep="\\t")'}  # fmt: skip
"""How pandas reads a file with this suffix; {} is its name."""
_TOOLS = {"completed_by": "Label Studio", "annotations": "Label Studio", "_input_hash": "Prodigy", "spans": "Prodigy",
          "Comments": "Doccano", "entities": "Doccano", "label": "Doccano"}  # fmt: skip
"""Keys of the first record that give an annotation tool away, the surest first."""
_ANNOTATED = {
    "Label Studio": "export it from Label Studio as CSV instead (Export, CSV), make a row or a cell of 0 or 1 of every "
    "choice, and rename the columns",
    "Prodigy": "write a row of post_id, post, criterion and label for every record and every option, with label 1 "
    "where the option is in accept (or where answer is accept)",
    "Doccano": "write a row of post_id, post, criterion and label for every record and every criterion, with label 1 "
    "where the criterion is in label",
}
_PEEKED = 2**20


def other_format(path: Path, allowed: str) -> UserError:
    """The error for a file that is not read: what to do depends on its suffix, and on the tool that wrote it.

    Args:
        path: the file; it need not exist.
        allowed: the suffixes that are allowed, as a part of the sentence.
    """
    suffix = path.suffix.lower()
    message = f"{path} ends in {suffix!r}; allowed are {allowed}"
    if suffix not in _READ:
        return UserError(message)
    tool = _tool(path) if "json" in suffix else None
    if tool is not None:
        return UserError(f"{message}; it looks like an export of {tool}: {_ANNOTATED[tool]}")
    read = _READ[suffix].format(f"{path.name!r}")
    csv = Path(path.stem).with_suffix(".csv").name
    return UserError(f"{message}; make a table of it with pandas: pandas.{read}.to_csv({csv!r}, index=False)")


def _tool(path: Path) -> str | None:
    """The annotation tool that wrote a file of JSON, by the keys of its first record; None if it is unknown.

    Doccano has only the key `label`: it counts if it holds a list.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_PEEKED).lstrip(" \t\r\n[")
        record, _ = json.JSONDecoder().raw_decode(text)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    found = [key for key in _TOOLS if key in record and (key != "label" or isinstance(record[key], list))]
    return _TOOLS[found[0]] if found else None
