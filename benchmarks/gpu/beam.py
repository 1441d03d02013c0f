"""Constrained beam search on a model of Llama2-7B's shape against `generate` with `prefix_allowed_tokens_fn`."""

from functools import partial

import torch

from align3gr.decoding import ConstrainedBeamSearch, SCIDTrie
from benchmarks.decoding import BEAMS, CODES, LEVEL_TOKENS, LEVELS, Peer
from benchmarks.decoding import Setting as Prompts
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.setting import Run, Setting

ITEMS, LENGTH, TEMPLATE = 20_000, 120, 60


def measure(setting: Setting, figures: Figures) -> None:
    """Users a second by batch, latency, ratio to `generate`, share of the trie, gain of the cached template."""
    items, length = (500, 24) if setting.tiny else (ITEMS, LENGTH)
    batches, peer_batch = ((1, 2), 2) if setting.tiny else ((1, 16, 64, 128), 16)
    prompts = Prompts.random(items, max(batches), length)
    template = length * TEMPLATE // LENGTH
    prompts.input_ids[:, :template] = prompts.input_ids[0, :template]
    ids = prompts.input_ids.to(setting.device)
    model = setting.llama()
    trie = SCIDTrie.from_codes(prompts.codes, (CODES,) * LEVELS)
    search = ConstrainedBeamSearch(model, trie, LEVEL_TOKENS, num_beams=BEAMS)

    def ours(batch: int) -> list[list[int]]:
        return search.search(ids[:batch]).top(BEAMS).items.tolist()  # also what a server would wait for

    peer = Peer(model, prompts.codes)
    few = Prompts(prompts.codes, ids[:peer_batch], torch.ones_like(ids[:peer_batch]))
    against: dict[str, tuple[Run, int]] = {
        "ours": (partial(ours, peer_batch), 3),
        "generate": (lambda: peer(few), 1),
    }
    seconds = setting.seconds(against, rounds=2 if setting.tiny else 5)
    figures.record(
        ratio=seconds["generate"] / seconds["ours"],
        users_per_s_batch_16=peer_batch / seconds["ours"],
        generate_users_per_s=peer_batch / seconds["generate"],
    )
    best_batch = _by_batch(setting, figures, {batch: partial(ours, batch) for batch in batches})
    with figures.attempt("template"):
        _with_template(setting, figures, search, ids[:best_batch], template, ids[:1])
        if "users_per_s_template" in figures.values:
            figures.record(
                ratio_template=float(figures.values["users_per_s_template"]) * seconds["generate"] / peer_batch
            )
    with figures.attempt("trie"):
        figures.record(**_trie_shares(setting, search, ids[:peer_batch], seconds["ours"]))
    with figures.attempt("memory"):
        peaks = {name: setting.peak_gb(run) for name, (run, _) in against.items()}
        if peaks["ours"] and peaks["generate"]:
            figures.record(peak_gb=peaks["ours"], memory_ratio=peaks["generate"] / peaks["ours"])


def _by_batch(setting: Setting, figures: Figures, runs: dict[int, Run]) -> int:
    """Latency of one user and the best rate over the batches; returns the batch that gave it."""
    rates: dict[int, float] = {}
    for batch, run in runs.items():
        with figures.attempt(f"batch {batch}"):
            rates[batch] = batch / setting.seconds({"search": (run, 3)}, rounds=3)["search"]
    best = max(rates, key=lambda batch: rates[batch])
    figures.record(users_per_s=rates[best], best_batch=best, latency_ms=1000 / rates[1] if 1 in rates else None)
    return best


def _with_template(
    setting: Setting,
    figures: Figures,
    search: ConstrainedBeamSearch,
    ids: torch.Tensor,
    template: int,
    one: torch.Tensor,
) -> None:
    """The first half of every prompt computed once; the lists must stay."""
    prefix = search.prefix(ids[0, :template].tolist())

    def run(rows: torch.Tensor) -> list[list[int]]:
        return search.search(rows, prefix=prefix).top(BEAMS).items.tolist()

    plain, cached = search.search(ids).top(BEAMS).items.tolist(), run(ids)
    same = sum(len(set(a) & set(b)) for a, b in zip(plain, cached, strict=True))
    seconds = setting.seconds({"all": (partial(run, ids), 3), "one": (partial(run, one), 5)}, rounds=3)
    figures.record(
        users_per_s_template=len(ids) / seconds["all"],
        latency_template_ms=1000 * seconds["one"],
        template_overlap=same / (len(ids) * BEAMS),
    )


def _trie_shares(
    setting: Setting, search: ConstrainedBeamSearch, ids: torch.Tensor, search_seconds: float
) -> dict[str, float]:
    """Time of all look-ups of one search over the time of the search.

    The look-ups are those of `BEAMS` random prefixes at each level. Alone they are a few short kernels, so most of
    their time here is the gap between launches: the share is an upper bound.
    """
    trie = search.trie
    generator = torch.Generator(setting.device).manual_seed(0)
    nodes = [torch.zeros(len(ids), 1, dtype=torch.long, device=setting.device)]
    for level in range(1, trie.levels):
        shape = (len(ids), min(BEAMS, trie.num_nodes[level - 1]))
        nodes.append(torch.randint(0, trie.num_nodes[level - 1], shape, device=setting.device, generator=generator))

    def look_up() -> None:
        for level, of_level in enumerate(nodes):
            trie.codes(level + 1, trie.children(level, of_level))

    seconds = setting.seconds({"trie": (look_up, 20)}, rounds=3)["trie"]
    return {"trie_ms": 1000 * seconds, "trie_share": seconds / search_seconds}
