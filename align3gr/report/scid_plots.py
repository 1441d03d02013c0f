"""Plots of a table of codes: how each codebook is used, and where the items of a code lie."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MAP_ITEMS = 5000  # t-SNE of more takes minutes and shows no more
MAP_CODES = 12
# Twelve colours that stay apart under the common colour deficiencies (Paul Tol's "muted" and "bright", without greys).
COLOURS = (
    *("#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#882255"),
    *("#44AA99", "#AA4499", "#999933", "#EE6677", "#4477AA", "#EE7733"),
)
_MARKERS = "os^DvP"  # the second half of the colours has other markers than the first


def plot_codebook_usage(codes: np.ndarray, codebook_sizes: Sequence[int], path: str | Path) -> None:
    """Writes a PNG with a panel for each level: items of each of its codes, most used first.

    Shape: `codes` `(items, levels)`.

    Args:
        codes: of the items. Shape: `(items, levels)`.
        codebook_sizes: codes of each level.
        path: where the PNG goes.
    """
    figure, axes = _figure(4.2 * codes.shape[1], 3.4, codes.shape[1])
    for level, (axis, size) in enumerate(zip(axes, codebook_sizes, strict=True)):
        counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
        axis.fill_between(np.arange(size), counts, step="mid", color="#4477AA", linewidth=0)
        even = len(codes) / size
        axis.axhline(even, color="#CC3311", linewidth=1.2, linestyle="--")
        axis.text(size - 1, even, f"even use: {even:,.0f}", color="#CC3311", ha="right", va="bottom", fontsize=9)
        axis.set_title(f"Level {level + 1}: {np.count_nonzero(counts)} of {size} codes used", fontsize=11)
        axis.set_xlabel("codes, most used first")
        axis.set_xlim(-0.5, size - 0.5)
        axis.set_ylim(0)
    axes[0].set_ylabel("items")
    _save(figure, path)


def plot_item_map(
    vectors: np.ndarray, first_codes: np.ndarray, path: str | Path, max_items: int = MAP_ITEMS, seed: int = 0
) -> int:
    """Writes a PNG with a 2-D map of the items, coloured by their first code. Returns how many items it shows.

    Rows are scaled to unit length, reduced by PCA and laid out by t-SNE, so that neighbours stay neighbours; distances
    between far groups mean nothing. The largest codes have colours, the other items are grey.

    Args:
        vectors: `(items, dim)`.
        first_codes: `(items,)`.
        path: PNG file to write.
        max_items: items on the map, drawn at random where there are more.
        seed: of the drawing and the layout.
    """
    counts = np.bincount(first_codes)
    rows, points = item_layout(vectors, max_items, seed)
    _draw_map(points, first_codes[rows], largest_codes(counts), counts, path)
    return len(rows)


def largest_codes(counts: np.ndarray) -> list[int]:
    """The codes that most items have, most first, as many as have a colour on a map. Shape: `counts` `(codes,)`."""
    return [int(code) for code in np.argsort(-counts, kind="stable")[:MAP_CODES] if counts[code]]


def item_layout(vectors: np.ndarray, max_items: int = MAP_ITEMS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places of items on a map, see [`plot_item_map`].

    Returns:
        rows of the items that are shown, ascending, `(shown,)`, and their places `(shown, 2)`.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.arange(len(vectors))
    if len(rows) > max_items:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_items, replace=False))
    shown = vectors[rows].astype(np.float32)
    shown /= np.maximum(np.linalg.norm(shown, axis=1, keepdims=True), 1e-12)
    shown = PCA(min(50, *shown.shape), random_state=seed).fit_transform(shown)
    # t-SNE needs fewer neighbours than items.
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return rows, TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(shown)


def _draw_map(
    points: np.ndarray, codes: np.ndarray, largest: Sequence[int], counts: np.ndarray, path: str | Path
) -> None:
    figure, (axis,) = _figure(8.4, 6.2, 1)
    others = ~np.isin(codes, largest)
    axis.scatter(*points[others].T, s=3, color="#CCCCCC", linewidths=0)
    for i, code in enumerate(largest):
        marker = _MARKERS[i % len(_MARKERS)]
        axis.scatter(
            *points[codes == code].T,
            s=16,
            color=COLOURS[i],
            marker=marker,
            linewidths=0,
            label=f"code {code} ({counts[code]:,})",
        )
    axis.scatter(
        [], [], s=16, color="#CCCCCC", linewidths=0, label=f"{np.count_nonzero(counts) - len(largest)} others"
    )
    title = f"{len(codes):,} items, the {len(largest)} largest first codes in colour"
    axis.set_title(title, fontsize=11)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_xlabel("t-SNE of the items' vectors; distances between far groups mean nothing", fontsize=9)
    axis.legend(
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        title="first code (its items)",
        frameon=False,
        fontsize=9,
        markerscale=1.6,
    )
    _save(figure, path)


def _figure(width: float, height: float, panels: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps global state and may look for a screen.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False, sharey=True)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: str | Path) -> None:
    # Without the library's version the file is the same for the same numbers.
    figure.savefig(path, dpi=100, metadata={"Software": None})
