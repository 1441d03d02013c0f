"""What bf16 changes: lists and log-probabilities against the same weights in fp32; and both kinds of step in fp32."""

import torch
from torch import Tensor

from align3gr.decoding import ConstrainedBeamSearch, SCIDTrie
from benchmarks.decoding import BEAMS, CODES, LEVEL_TOKENS, LEVELS, Peer
from benchmarks.decoding import Setting as Prompts
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.preference import Steps, disagreement, with_lora
from benchmarks.gpu.setting import Setting
from benchmarks.softmax_dpo import build_rows

ITEMS, LENGTH = 20_000, 120


def measure(setting: Setting, figures: Figures) -> None:
    """Overlap of the lists, differences of the scores, and in fp32 the agreement with the plain ways."""
    torch.set_float32_matmul_precision("highest")  # fp32, not TF32
    items, length, batch = (500, 24, 4) if setting.tiny else (ITEMS, LENGTH, 32)
    with figures.attempt("search"):
        _compare_searches(setting, figures, Prompts.random(items, batch, length))
    with figures.attempt("preference"):
        prompts, rejected = (2, 6) if setting.tiny else (2, 20)
        model = with_lora(setting.llama(torch.float32, layers=2 if setting.tiny else 4))
        rows = build_rows(model.config.vocab_size, True, prompts, length, rejected)
        steps = Steps(model, setting, rows)
        loss, gradient = disagreement(model, steps.shared, steps.naive)
        _, merged = disagreement(model, steps.merged, steps.naive)
        figures.record(fp32_loss_difference=loss, fp32_gradient_difference=gradient, fp32_merged_difference=merged)


def _compare_searches(setting: Setting, figures: Figures, prompts: Prompts) -> None:
    ids = prompts.input_ids.to(setting.device)
    trie = SCIDTrie.from_codes(prompts.codes, (CODES,) * LEVELS)
    model = setting.llama(torch.float32)
    exact = ConstrainedBeamSearch(model, trie, LEVEL_TOKENS, num_beams=BEAMS)
    top = exact.search(ids).top(BEAMS)
    with figures.attempt("generate"):
        few = ids[: 2 if setting.tiny else 4]
        peer = Peer(model, prompts.codes)
        tokens, scores = peer(Prompts(prompts.codes, few, torch.ones_like(few)))
        codes = prompts.codes.to(setting.device)[top.items[: len(few)]]  # (batch, beams, levels)
        # Two lists are one also where equal scores changed places: scores must agree, and the sets of items.
        level_tokens = LEVEL_TOKENS.to(setting.device)
        ours = torch.stack([level_tokens[level][codes[..., level]] for level in range(LEVELS)], dim=-1)
        figures.record(
            same_as_generate=overlap(_keys(ours), _keys(tokens)),
            score_difference_generate=float((top.scores[: len(few)] - scores).abs().max()),
        )
    half = setting.llama(torch.bfloat16)
    with torch.no_grad():
        for weight, exact_weight in zip(half.parameters(), model.parameters(), strict=True):
            weight.copy_(exact_weight)
    rounded = ConstrainedBeamSearch(half, trie, LEVEL_TOKENS, num_beams=BEAMS).search(ids).top(BEAMS)
    figures.record(
        overlap_10=overlap(top.items[:, :10], rounded.items[:, :10]),
        overlap_20=overlap(top.items, rounded.items),
        same_first=float((top.items[:, 0] == rounded.items[:, 0]).float().mean()),
    )
    differences = score_differences(top.items, top.scores, rounded.items, rounded.scores)
    figures.record(logp_mean_difference=float(differences.mean()), logp_max_difference=float(differences.max()))


def _keys(tokens: Tensor) -> Tensor:
    """One number for each sequence of tokens. Shape: `(batch, beams, levels)` -> `(batch, beams)`."""
    place = torch.tensor([2 ** (20 * level) for level in range(tokens.shape[-1])], device=tokens.device)
    return (tokens.long() * place).sum(-1)


def overlap(ours: Tensor, theirs: Tensor) -> float:
    """Share of the items of a list that the other has. Shapes: `(batch, k)` each."""
    return float((ours.unsqueeze(2) == theirs.unsqueeze(1)).any(2).float().mean())


def score_differences(items: Tensor, scores: Tensor, other: Tensor, other_scores: Tensor) -> Tensor:
    """Absolute differences of the log-probabilities of the items that both lists have, as one row."""
    both = items.unsqueeze(2) == other.unsqueeze(1)  # (batch, k, k)
    return (scores.unsqueeze(2) - other_scores.unsqueeze(1)).abs()[both]
