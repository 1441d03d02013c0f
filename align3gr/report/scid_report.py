"""The report on a table of codes: numbers, plots, and a page that puts them together."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID
from align3gr.encoders.embeddings import COLLABORATIVE, SEMANTIC, Embeddings
from align3gr.errors import InputError
from align3gr.report.scid_plots import plot_codebook_usage, plot_item_map
from align3gr.scid.code_table import CodeTable, read_code_table
from align3gr.scid.quality import CodeQuality, PrefixLift, measure_quality

Table = tuple[str, list[str], list[list[str]]]  # title, head, rows


def write_scid_report(
    codes: str | Path,
    output: str | Path,
    data: str | Path | None = None,
    vectors: str | Path | None = None,
    codebook_sizes: Sequence[int] | None = None,
) -> tuple[CodeQuality, list[Table]]:
    """Writes `scid-report.md`, `scid-report.json`, `codebook_usage.png` and, with vectors, `item_map.png`.

    Args:
        codes: `item_codes.parquet` of a run, or an `*.index.json` of LC-Rec or LETTER.
        output: folder to write to.
        data: prepared data, for the prefix lift of items that its train histories hold.
        vectors: `embeddings/items.parquet` of a run, for the map.
        codebook_sizes: codes of each level, where the largest code that occurs is not the last.

    Returns:
        The numbers, and the tables of the page.

    Raises:
        InputError: a file cannot be read, or one names items that another lacks.
    """
    table = read_code_table(codes)
    # All that is read is read before anything is written.
    sequences = None if data is None else train_sequences(table, Split.load(data))
    points = None if vectors is None else item_vectors(vectors, table)
    quality = measure_quality(table.codes, sequences, codebook_sizes)
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}; choose another folder") from error
    plot_codebook_usage(table.codes, [level.codebook_size for level in quality.levels], output / "codebook_usage.png")
    shown = None
    if points is None:
        (output / "item_map.png").unlink(missing_ok=True)  # of an earlier report
    else:
        shown = plot_item_map(points, table.codes[:, 0], output / "item_map.png")
    tables = quality_tables(quality)
    page = _page(Path(codes).name, tables, shown, data is not None)
    (output / "scid-report.md").write_text(page, encoding="utf-8")
    (output / "scid-report.json").write_text(json.dumps(quality.to_dict(), indent=2) + "\n", encoding="utf-8")
    return quality, tables


def quality_tables(quality: CodeQuality) -> list[Table]:
    """The numbers as tables of strings."""
    usage = [
        [
            str(i + 1),
            str(level.codebook_size),
            f"{level.utilisation:.1%}",
            f"{level.entropy:.2f}",
            f"{level.perplexity:.1f}",
        ]
        for i, level in enumerate(quality.levels)
    ]
    collisions, load = quality.collisions, quality.load
    whole = [
        ["items", f"{quality.items:,}"],
        ["items that share all codes with another", f"{collisions.items:,} ({collisions.items / quality.items:.1%})"],
        ["groups of such items, largest", f"{collisions.groups:,}, {collisions.largest:,}"],
        ["items of a first code: min, median, max", f"{load['min']:,}, {load['median']:,.0f}, {load['max']:,}"],
    ]
    neighbours = [
        [
            str(n.levels),
            f"{n.mean_exactly:,.1f}",
            f"{n.share_exactly:.1%}",
            f"{n.mean_at_least:,.1f}",
            f"{n.share_at_least:.1%}",
        ]
        for n in quality.neighbours
    ]
    tables: list[Table] = [
        ("The table", ["", "value"], whole),
        ("Codebooks", ["level", "codes", "used", "entropy (bits)", "perplexity"], usage),
        (
            "Prefix neighbours",
            ["levels shared", "exactly: items", "have one", "at least: items", "have one"],
            neighbours,
        ),
    ]
    if quality.lifts:
        head = ["pairs", "levels", "share a prefix", "random pairs", "lift", "lift by popularity"]
        tables.append(("Prefix lift", head, [_lift_row(lift) for lift in quality.lifts]))
    return tables


def _lift_row(lift: PrefixLift) -> list[str]:
    lifts = ["-" if value is None else f"{value:.2f}" for value in (lift.lift, lift.lift_by_popularity)]
    return [
        f"{lift.pairs} ({lift.count:,})",
        str(lift.levels),
        f"{lift.share:.3%}",
        f"{lift.random_share:.3%}",
        *lifts,
    ]


def train_sequences(table: CodeTable, split: Split) -> list[np.ndarray]:
    """The train histories in rows of the table of codes."""
    rows = table.rows(split.items[ITEM_ID])
    return [rows[sequence] for sequence in split.train_sequences()]


def item_vectors(path: str | Path, table: CodeTable) -> np.ndarray:
    """The vectors of the table's items: all kinds that the file has, the rows of each kind scaled to unit length."""
    try:
        vectors = Embeddings.load(path, ITEM_ID, pl.Series(table.ids, dtype=pl.String))
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); give a run's embeddings") from None
    kinds = [kind for kind in (vectors.semantic, vectors.collaborative) if kind is not None]
    if not kinds:
        raise InputError(f"{path}: has neither a column '{SEMANTIC}' nor '{COLLABORATIVE}'; give a run's embeddings")
    return np.concatenate([kind / np.maximum(np.linalg.norm(kind, axis=1, keepdims=True), 1e-12) for kind in kinds], 1)


def _page(name: str, tables: Sequence[Table], shown: int | None, lifts: bool) -> str:
    parts = [f"# Codes of {name}\n"]
    for title, head, rows in tables:
        parts.append(f"## {title}\n\n{_markdown(head, rows)}")
        if title == "Codebooks":
            parts.append("![Items of each code, level by level](codebook_usage.png)\n")
    if not lifts:
        parts.append("## Prefix lift\n\nLeft out: it needs the prepared data (`--data`).\n")
    if shown is None:
        parts.append("## Map of the items\n\nLeft out: it needs the items' vectors (`--vectors`).\n")
    else:
        parts.append(f"## Map of the items\n\n![{shown:,} items by first code](item_map.png)\n")
    return "\n".join(parts)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
