"""Sections of a run's report on what goes into the language model: the data and the SCIDs."""

import numpy as np

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, TITLE, USER_ID
from align3gr.report.html_page import paragraph, table
from align3gr.report.run_files import RunFiles
from align3gr.report.scid_plots import item_layout, largest_codes
from align3gr.report.scid_report import item_vectors, quality_tables, train_sequences
from align3gr.report.svg import bar_chart, line_chart, scatter_chart
from align3gr.scid.code_table import CodeTable, load_codebook_sizes, read_code_table
from align3gr.scid.quality import measure_quality

MAP_ITEMS = 1500  # a report is written at the end of every evaluation: t-SNE of more would be felt
_LENGTHS = ((1, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
_TITLES = 4


def data_section(run: RunFiles) -> str:
    """Counts, lengths of the train histories, and how unevenly items are consumed."""
    split = Split.load(run.stage("prepare"))
    facts = [
        [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.4g}"]
        for name, value in split.statistics.items()
        if isinstance(value, int | float)
    ]
    sequences = split.train_sequences()
    lengths = np.array([len(sequence) for sequence in sequences])
    shares = {}
    for low, high in _LENGTHS:
        inside = (lengths >= low) & (lengths <= (high or lengths.max(initial=low)))
        shares[f"{low}-{high}" if high else f"{low} or more"] = {
            "users": float(inside.mean()) if len(lengths) else 0.0
        }
    counts = np.sort(np.bincount(np.concatenate([*sequences, np.empty(0, np.int64)]), minlength=len(split.items)))[
        ::-1
    ]
    popularity = {"train interactions": list(zip(range(1, len(counts) + 1), counts.tolist(), strict=True))}
    top = counts[: max(1, len(counts) // 100)].sum() / max(1, counts.sum())
    settings = run.manifests["prepare"]["settings"]
    how = ", ".join(
        f"{name} {settings[name]}" for name in ("format", "split", "core") if settings.get(name) is not None
    )
    return (
        paragraph(
            f"Prepared with {how}. The hundredth part of the items with most train interactions has {top:.1%} of them."
        )
        + table(["", "value"], facts)
        + "<h3>Length of the train histories</h3>"
        + paragraph("Share of the users by number of their train interactions.", "note")
        + bar_chart(shares, digits=3)
        + "<h3>Popularity of the items</h3>"
        + line_chart(popularity, "items, most consumed first", "train interactions", from_zero=True)
    )


def codes_section(run: RunFiles) -> str:
    """How the codebooks are used, what the codes gather, and the map of the items."""
    split = Split.load(run.stage("prepare"))
    codes = read_code_table(run.stage("scid") / "item_codes.parquet")
    sizes = load_codebook_sizes(run.stage("scid") / "codebooks.json")[0]
    quality = measure_quality(codes.codes, train_sequences(codes, split), sizes)
    usage = {}
    for level, size in enumerate(sizes):
        counts = np.sort(np.bincount(codes.codes[:, level], minlength=size))[::-1]
        usage[f"level {level + 1}"] = list(zip(range(1, size + 1), counts.tolist(), strict=True))
    parts = [line_chart(usage, "codes of a level, most used first", "items", from_zero=True)]
    for title, head, rows in quality_tables(quality):
        parts.append(f"<h3>{title}</h3>" + table(head, rows))
    parts += ["<h3>Users</h3>", _users(run), "<h3>What first codes gather</h3>", _first_codes(codes, split)]
    parts += ["<h3>Map of the items</h3>", _map(run, codes)]
    return "".join(parts)


def _users(run: RunFiles) -> str:
    users = read_code_table(run.stage("scid") / "user_codes.parquet", USER_ID)
    if not users.codes.shape[1]:
        return paragraph("Users have no SCIDs in this run.")
    distinct = len(np.unique(users.codes, axis=0))
    used = ", ".join(str(len(np.unique(column))) for column in users.codes.T)
    return paragraph(
        f"{len(users.ids):,} users have {distinct:,} distinct SCIDs; codes used at each level: {used}. "
        "Users may share an SCID."
    )


def _first_codes(codes: CodeTable, split: Split) -> str:
    """The largest first codes with their most consumed items."""
    sequences = split.train_sequences()
    consumed = np.bincount(np.concatenate([*sequences, np.empty(0, np.int64)]), minlength=len(split.items))
    first = codes.select(split.items[ITEM_ID])[:, 0]
    titles, ids = split.items[TITLE].to_list(), split.items[ITEM_ID].to_list()
    rows = []
    for code in largest_codes(np.bincount(first)):
        items = np.flatnonzero(first == code)
        shown = items[np.argsort(-consumed[items], kind="stable")][:_TITLES]
        rows.append([code, f"{len(items):,}", "; ".join(titles[item] or ids[item] for item in shown)])
    return table(["first code", "items", "those consumed most"], rows, words=True)


def _map(run: RunFiles, codes: CodeTable) -> str:
    path = run.stage("embed") / "items.parquet"
    if not path.is_file():
        return paragraph("Left out: it needs the items' vectors, which stage 'embed' makes.", "missing")
    if len(codes.ids) < 4:
        return paragraph(f"Left out: {len(codes.ids)} items make no map.", "missing")
    rows, points = item_layout(item_vectors(path, codes), MAP_ITEMS)
    first = codes.codes[:, 0]
    largest = largest_codes(np.bincount(first))
    place = {code: number for number, code in enumerate(largest)}
    groups = np.array([place.get(int(code), -1) for code in first[rows]])
    names = [f"code {code}" for code in largest]
    caption = (
        f"{len(rows):,} of {len(first):,} items by first code, the largest {len(largest)} in colour. t-SNE of the "
        "items' vectors: what has one colour should lie together; distances between far groups mean nothing."
    )
    return paragraph(caption, "note") + scatter_chart(points, groups, names, "other codes")
