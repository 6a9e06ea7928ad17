"""What the columns of a user's table can hold, and the names under which they are recognised."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

from ..errors import DataError, nearest, quote_value

Field = Literal["post_id", "post", "criterion", "label", "criterion_text", "group", "evidence"]
"""What a column holds; also its name in the file, unless the setting `columns` says another."""

REQUIRED: tuple[Field, ...] = ("post_id", "post", "criterion", "label")
"""What a table with one row per post and criterion must have."""
WIDE: tuple[Field, ...] = ("post_id", "post", "group")
"""What a wide table, with one row per post, can have besides its criteria."""

_WORD = re.compile(r"[\w.\-]{1,40}")
_WORDS = re.compile(r"[A-Za-z0-9 _.\-]{1,40}")
_FIRST_UNSPACED = "\u0e00"
"""Scripts that write sentences without spaces (Thai, Chinese, Japanese) begin here."""

_CLOSE = 0.8
"""How similar a column's name must be to that of a field that the table may lack: `age_group` is not `group`."""

ALIASES: dict[Field, tuple[str, ...]] = {
    "post_id": (
        "id", "postid", "doc_id", "document_id", "text_id", "message_id", "comment_id", "tweet_id", "note_id",
        "submission_id", "entry_id",
    ),
    "post": (
        "text", "body", "content", "message", "document", "comment", "tweet", "note", "selftext", "review", "entry",
        "post_text", "full_text",
    ),
    "criterion": ("criteria", "criterion_name", "symptom", "category", "aspect", "code"),
    "label": ("labels", "target", "annotation", "answer", "gold", "status", "class", "y"),
    "criterion_text": ("criterion_description", "description", "definition", "question"),
    "group": (
        "group_id", "author", "author_id", "user", "user_id", "username", "user_name", "writer", "patient",
        "patient_id", "subject_id", "participant", "participant_id", "person", "person_id", "speaker",
    ),
    "evidence": ("evidence_text", "passage", "rationale", "highlight", "quote", "span_text", "sentence_text"),
}  # fmt: skip
"""Other names of each field, in the form that `normal` gives."""


def normal(name: str) -> str:
    """Return a column's name in lower case with underscores: `Author ID` and `authorId` become `author_id`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def is_name(name: str, known: Collection[str] = ()) -> bool:
    """Whether a message may show the name of a column: it cannot be the text of a post.

    The first row of a table without a header is data. So a name is one word of letters, digits, `_`, `-` and `.`,
    another spelling of a field (`Post ID`), or one of `known`, which the user has named.
    """
    if name in known:
        return True
    if _WORDS.fullmatch(name):
        words = normal(name)
        return " " not in name or any(words.removesuffix("s") in (field, *names) for field, names in ALIASES.items())
    return _WORD.fullmatch(name) is not None and max(name) < _FIRST_UNSPACED


def quote_name(name: str, known: Collection[str] = ()) -> str:
    """Quote the name of a column for a message, or say how long it is; see `is_name`."""
    return quote_value(name) if is_name(name, known) else quote_value(name, max_words=0)


def candidates(names: Sequence[str], field: Field) -> list[str]:
    """Return the columns that could hold a field, going by their names alone.

    A column that has the field's own name is the only candidate.
    """
    same = [name for name in names if name == str(field)] or [name for name in names if normal(name) == field]
    return same[:1] or [name for name in names if normal(name) in ALIASES[field]]


def lookalikes(names: Sequence[str], field: Field) -> list[str]:
    """Return the columns that a person probably means by a field, although none of them has its own name.

    Another spelling counts (`Group`, `groups`, `grupp`), and so do other names of the field.
    """
    if field in names:
        return []
    return [name for name in names if _means(normal(name), field)]


def _means(name: str, field: Field) -> bool:
    known = (field, *ALIASES[field])
    return name in known or name.removesuffix("s") in known or nearest(name, [field], cutoff=_CLOSE) is not None


def post_column(where: str, names: Sequence[str], named: str | None = None, *, remedy: str) -> str:
    """Return the column of the posts: the one that is named, called `post`, or the only one with a name like it.

    Args:
        where: what messages call the table.
        names: its columns.
        named: the column that the user has named, if any.
        remedy: how to say which column it is, as the end of a sentence.

    Raises:
        DataError: there is no such column, or there are several.
    """
    found = [name for name in names if name == named] if named else candidates(names, "post")
    if len(set(found)) == 1 and names.count(found[0]) == 1:
        return found[0]
    if found:
        several = " and ".join(quote_name(name, [named or ""]) for name in found)
        raise DataError(where, [f"{several} could each hold the posts; {remedy}"])
    missing = f"column {named or 'post'} is missing"
    missing += f" (the table has: {', '.join(map(quote_name, names[:20]))})"
    close = nearest(named or "post", filter(is_name, names))
    raise DataError(where, [f"{missing}; did you mean {close!r}?" if close else f"{missing}; {remedy}"])
