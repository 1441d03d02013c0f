"""Texts of web pages as plain texts: entities resolved, markup removed, one line."""

import html
import re
from collections.abc import Iterable
from typing import Any

import polars as pl

# A tag begins with a letter, "/" or "!"; "a < b" is text.
_TAG = r"</?[a-zA-Z!][^<>]*>"
_CODE = r"(?is)<script\b.*?</script>|<style\b.*?</style>"
# What a text that needs cleaning holds, apart from space at its ends.
_TO_CLEAN = ["&", "<", "  ", "\n", "\r", "\t", "\u00a0"]


def clean_text(text: str) -> str:
    """Entities resolved, scripts, styles and tags removed, white space made single.

    Example:
        >>> clean_text("Fender&reg;  Strat<br/>by <b>Fender</b>")
        'Fender® Strat by Fender'
        >>> clean_text("1 &lt; 2")
        '1 < 2'
    """
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = re.sub(_TAG, " ", re.sub(_CODE, " ", text))
    return " ".join(text.split())


def clean_column(column: pl.Series) -> pl.Series:
    """`clean_text` for a column; texts that need no more than stripping do not leave the fast path."""
    column = column.str.strip_chars()
    rows = column.str.contains_any(_TO_CLEAN).fill_null(False).arg_true()
    if len(rows) == 0:
        return column
    return column.scatter(rows, pl.Series([clean_text(text) for text in column.gather(rows)], dtype=pl.String))


def as_texts(value: Any) -> list[str]:
    """The clean, non-empty texts of a field that may be missing, a text, a number, or a (nested) list of these.

    Example:
        >>> as_texts([["Guitars", "Bags &amp; Cases"], ["Guitars"], None])
        ['Guitars', 'Bags & Cases', 'Guitars']
    """
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [text for part in value for text in as_texts(part)]
    text = clean_text(str(value))
    return [text] if text else []


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order of their first appearance."""
    return list(dict.fromkeys(texts))


def sentences(*parts: str) -> str:
    """The non-empty parts joined as sentences.

    Example:
        >>> sentences("Is it loud?", "", "Guitars, Amps.", "Vox")
        'Is it loud? Guitars, Amps. Vox'
    """
    kept = [part for part in parts if part]
    ended = [part if part[-1] in ".!?" else part + "." for part in kept[:-1]]
    return " ".join(ended + kept[-1:])


def review_texts(summary: pl.Series | None, text: pl.Series) -> pl.Series:
    """Summary and text of each review as one clean text; null where both are empty."""
    texts = clean_column(text).replace("", None).alias("text")
    if summary is None:
        return texts
    frame = pl.DataFrame([clean_column(summary).replace("", None).alias("summary"), texts])
    ended = pl.when(pl.col("summary").str.contains(r"[.!?]$")).then("summary").otherwise(pl.col("summary") + ".")
    before = pl.when(pl.col("text").is_null()).then("summary").otherwise(ended)
    return frame.select(pl.concat_str(before, "text", separator=" ", ignore_nulls=True).alias("text"))["text"].replace(
        "", None
    )
