"""Embedding rows for SCID tokens in a pretrained language model, with a start that tells the tokens apart.

transformers' own `mean_resizing` draws new rows with a spread of 1e-9 of the old rows' covariance, so that all of them
are one vector for practical purposes, and takes the covariance of the whole matrix, minutes for a model of 7B.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align3gr.errors import InputError
from align3gr.scid.vocabulary import SCIDVocabulary

CodeVectors = Sequence[torch.Tensor]
Init = Literal["mean", "codebook", "collaborative"]

_CHUNK = 8192  # rows that are looked at in fp32 at a time


@torch.no_grad()
def resize_scid_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    init: Init = "mean",
    codebooks: Mapping[Literal["item", "user"], CodeVectors] | None = None,
    noise: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
) -> list[int]:
    """Gives a model rows for the SCID tokens of a tokenizer, in input and output embeddings, tied or not.

    Call it on a model in memory, before adapters and before it is sharded. Rows of other tokens stay bit-identical;
    the matrices never shrink (Qwen2 has spare rows behind its vocabulary, which SCID tokens then take).

    Args:
        model: a causal LM whose vocabulary the tokenizer extends.
        tokenizer: a tokenizer with SCID tokens, see [`SCIDTokenizer.from_base`].
        init: "mean" draws rows around the mean of the old ones with their spread in each dimension. "codebook" adds
            to the mean the code's vector, rotated by a random orthogonal projection of its level and scaled to the old
            rows' spread, so that near codes start near; user tokens start as with "mean" where they have no vectors.
            "collaborative" does so with vectors of one space, such as the mean vector of the items that carry a code:
            one projection and one length for all levels, and for input and output embeddings.
        codebooks: for "codebook" the code vectors of "item", and of "user" where there are some: one `(codes, dim)`
            tensor a level. For "collaborative" the same of what its codes stand for.
        noise: spread of the noise of all rows relative to that of the old rows. Where None, 0.1 for rows that start
            from a code's vector and 1.0 for all others.
        scale: length of what vectors add, relative to the old rows' spread.
        seed: of the noise and the projections. The global random state is left as it was.
        pad_to_multiple_of: round the number of rows up, for tensor cores; rows in excess start at the mean.

    Returns:
        The ids of the SCID tokens, ascending within items and users: what PEFT's `trainable_token_indices` takes.

    Raises:
        InputError: an argument does not fit the tokenizer.
    """
    vocabulary = SCIDVocabulary.from_tokenizer(tokenizer)
    if init not in get_args(Init):
        raise InputError(f"init: got {init!r}, expected one of {', '.join(get_args(Init))}")
    if scale <= 0:
        raise InputError(f"scale: got {scale}, expected a number above 0")
    if scale != 1 and init == "mean":
        raise InputError(f"scale: got {scale}, but rows around the mean start from no vectors; choose another init")
    if noise is not None and noise < 0:
        raise InputError(f"noise: got {noise}, expected a number of 0 or more")
    vectors = _code_vectors(vocabulary, codebooks, init) if init != "mean" else {}
    new = torch.tensor(vocabulary.token_ids)
    position = {token_id: row for row, token_id in enumerate(new.tolist())}
    noises = torch.full((len(new), 1), 1.0 if noise is None else noise)
    if noise is None:
        noises[[position[token_id] for token_ids in vectors for token_id in token_ids]] = 0.1
    have = _matrices(model)[0].shape[0]
    old_rows = min(have, int(new.min()))
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(max(have, len(tokenizer)), pad_to_multiple_of, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for matrix in _matrices(model):
        mean, spread = _mean_and_spread(matrix[:old_rows])
        matrix[have:] = mean.to(matrix)
        length = scale * spread.square().sum().sqrt()
        # One space: the same projection for every matrix.
        turning = torch.Generator().manual_seed(seed) if init == "collaborative" else generator
        rows = mean + noises * spread * torch.randn(len(new), len(mean), generator=generator)
        for token_ids, values in vectors.items():
            rows[[position[i] for i in token_ids]] += length * _project(values, len(mean), turning)
        matrix[new.to(matrix.device)] = rows.to(matrix)
    return new.tolist()


def _matrices(model: PreTrainedModel) -> list[torch.Tensor]:
    """The input embeddings, and the output embeddings where they are not the same matrix."""
    matrices: list[Any] = [model.get_input_embeddings().weight]
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not matrices[0]:
        matrices.append(head.weight)
    return matrices


def _code_vectors(
    vocabulary: SCIDVocabulary, codebooks: Mapping[Literal["item", "user"], CodeVectors] | None, init: Init
) -> dict[tuple[int, ...], torch.Tensor]:
    """The vectors of each level, or of all levels of a side in one space, by the token ids of their codes."""
    if not codebooks or "item" not in codebooks:
        raise InputError(f'codebooks: init="{init}" needs the vectors of "item", one (codes, dim) tensor a level')
    vectors: dict[tuple[int, ...], torch.Tensor] = {}
    for family, table in (("item", vocabulary.item_tokens), ("user", vocabulary.user_tokens)):
        if family not in codebooks:
            continue
        levels = [torch.as_tensor(values).float().cpu() for values in codebooks[family]]  # type: ignore[index]
        sizes, wanted = [len(values) for values in levels], (table >= 0).sum(axis=1).tolist()
        if sizes != wanted:
            raise InputError(f"codebooks: {family} levels have {sizes} vectors, the tokenizer has {wanted} tokens")
        rows = [tuple(row[row >= 0].tolist()) for row in table]
        if init == "collaborative":
            vectors[sum(rows, ())] = torch.cat(levels)
        else:
            vectors.update(zip(rows, levels, strict=True))
    return vectors


def _mean_and_spread(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each dimension, fp32 on the CPU. Shape: `(rows, dim)` -> `(dim,)` each."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for chunk in rows.split(_CHUNK):
        total += chunk.double().sum(0).cpu()
    mean = total / len(rows)
    squares = torch.zeros_like(total)
    for chunk in rows.split(_CHUNK):
        squares += (chunk.double().cpu() - mean).square().sum(0)
    return mean.float(), (squares / len(rows)).sqrt().float()


def _project(values: torch.Tensor, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Centred vectors of about unit length, turned at random. Shape: `(codes, width)` -> `(codes, dim)`."""
    centred = values - values.median(0).values
    # Medians and a cap: codes that nothing uses may lie far out.
    length = centred.norm(dim=1, keepdim=True)
    typical = length.median().clamp_min(torch.finfo(length.dtype).tiny)
    centred = centred * torch.minimum(1 / typical, 2 / length.clamp_min(1e-30))
    width = values.shape[1]
    basis = torch.linalg.qr(torch.randn(max(dim, width), min(dim, width), generator=generator)).Q
    turned = centred @ (basis.T if width <= dim else basis)
    # A narrower model keeps dim of the width dimensions; what is left has this share of the length.
    return turned * math.sqrt(max(1.0, width / dim))
