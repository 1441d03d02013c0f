import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from align3gr.errors import InputError
from align3gr.scid import SCIDTokenizer, resize_scid_embeddings, train_base_tokenizer

SIZES, USERS = [16, 16], [8]
NEW = 16 + 16 + 8


@pytest.fixture(scope="module")
def base():
    return train_base_tokenizer(["red shoes", "blue shoes"], 300)


@pytest.fixture(scope="module")
def tokenizer(base):
    return SCIDTokenizer.from_base(base, SIZES, USERS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(kind: str, rows: int, tied: bool):
    torch.manual_seed(1)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_embd=48, n_layer=1, n_head=2, n_positions=32))
    else:
        config, architecture = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[
            kind
        ]
        shape = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = architecture(config(vocab_size=rows, tie_word_embeddings=tied, num_key_value_heads=2, **shape))
    # A mean and a spread that differ between the dimensions, as in trained models.
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight.copy_(torch.randn(rows, 48) * torch.linspace(0.1, 2, 48) + torch.linspace(-1, 1, 48))
    return model


KINDS = [("llama", False), ("llama", True), ("qwen2", True), ("qwen2", False), ("gpt2", True)]


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("init", ["mean", "codebook", "collaborative"])
def test_old_rows_stay_and_new_ones_have_their_spread(kind, tied, init, base, tokenizer):
    model = make(kind, len(base), tied)
    before = [m.weight.detach().clone() for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    books = {"item": [torch.randn(16, 8), torch.randn(16, 8)], "user": [torch.randn(8, 8)]}
    ids = resize_scid_embeddings(model, tokenizer, init=init, codebooks=None if init == "mean" else books)
    assert ids == list(range(len(base), len(base) + NEW))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[0] == "<i0_0>" and tokens[16] == "<i1_0>" and tokens[-1] == "<u0_7>"
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (after[0] is after[1]) == tied
    assert model.config.vocab_size == len(tokenizer) == len(after[0]) == len(after[1])
    for old, now in zip(before, after, strict=True):
        assert torch.equal(now[: len(base)], old)
        new = now[len(base) :].detach()
        # Rows of about the old norms, none like another: mean_resizing makes their cosine 1.0.
        assert 0.8 < new.norm(dim=1).mean() / old.norm(dim=1).mean() < 1.25
        similar = torch.nn.functional.cosine_similarity(new[:, None], new[None], dim=2).fill_diagonal_(0)
        assert similar.max() < 0.95
        if init == "mean":
            # 40 draws: the standard error of a standard deviation is 11 %.
            torch.testing.assert_close(new.std(0), old.std(0), rtol=0.5, atol=0)
            torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0, atol=1.0)
    text = tokenizer("<u0_1> red<i0_3><i1_2>", return_tensors="pt")["input_ids"]
    assert model(input_ids=text, labels=text).loss.isfinite()


def test_the_seed_decides_and_the_global_state_stays(base, tokenizer):
    rows = []
    for seed in (3, 3, 4):
        model = make("llama", len(base), False)
        torch.manual_seed(seed + len(rows))
        state = torch.get_rng_state()
        resize_scid_embeddings(model, tokenizer, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        rows.append(model.get_input_embeddings().weight[len(base) :].detach())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_near_codes_start_near(base, tokenizer):
    """Distances between the rows of a level are those of the code vectors, times one factor."""
    codes = torch.randn(16, 8)
    books = {"item": [codes, torch.randn(16, 8)]}
    model = make("llama", len(base), False)
    ids = resize_scid_embeddings(model, tokenizer, "codebook", codebooks=books, noise=0)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = module.weight[ids[:16]].detach()
        ratio = (torch.cdist(rows, rows) / torch.cdist(codes, codes))[~torch.eye(16, dtype=torch.bool)]
        # No vector is longer than twice the median, so nothing was cut here.
        assert (codes - codes.median(0).values).norm(dim=1).max() < 2 * codes.norm(dim=1).median()
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    # Without vectors for users, and without noise, they start at the mean.
    users = model.get_input_embeddings().weight[ids[32:]].detach()
    torch.testing.assert_close(
        users, make("llama", len(base), False).get_input_embeddings().weight.mean(0).expand(8, 48)
    )


@pytest.mark.parametrize("tied", [False, True])
def test_vectors_of_one_space_stay_in_one_space(tied, base, tokenizer):
    """Distances between rows of different levels, and between input and output rows, are those of the vectors."""
    vectors = torch.randn(32, 8)
    books = {"item": [vectors[:16], vectors[16:]]}
    model, longer = (make("llama", len(base), tied) for _ in range(2))
    ids = resize_scid_embeddings(model, tokenizer, "collaborative", codebooks=books, noise=0)
    resize_scid_embeddings(longer, tokenizer, "collaborative", codebooks=books, noise=0, scale=3.0)
    turned = []
    for get in ("get_input_embeddings", "get_output_embeddings"):
        weight = getattr(model, get)().weight.detach()
        old = make("llama", len(base), tied)
        mean, spread = getattr(old, get)().weight.mean(0).detach(), getattr(old, get)().weight.std(0).norm().item()
        rows = weight[ids[:32]] - mean
        ratio = (torch.cdist(rows, rows) / torch.cdist(vectors, vectors))[~torch.eye(32, dtype=torch.bool)]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
        assert 0.8 < rows.norm(dim=1).median() / spread < 1.2
        torch.testing.assert_close(
            getattr(longer, get)().weight.detach()[ids[:32]] - mean, 3 * rows, rtol=1e-3, atol=1e-4
        )
        turned.append(rows / spread)
    torch.testing.assert_close(*turned, rtol=1e-3, atol=1e-4)


def test_users_without_vectors_start_as_with_mean(base, tokenizer):
    books = {"item": [torch.randn(16, 8), torch.randn(16, 8)]}
    plain, coded, quiet = (make("llama", len(base), False) for _ in range(3))
    ids = resize_scid_embeddings(plain, tokenizer, "mean")
    resize_scid_embeddings(coded, tokenizer, "codebook", codebooks=books)
    rows = [model.get_input_embeddings().weight.detach()[ids] for model in (plain, coded)]
    assert torch.equal(rows[1][32:], rows[0][32:])
    # Rows of codes have the noise that was theirs before, and a given one is that of all rows.
    resize_scid_embeddings(quiet, tokenizer, "codebook", codebooks=books, noise=0.1)
    all_quiet = quiet.get_input_embeddings().weight.detach()[ids]
    assert torch.equal(rows[1][:32], all_quiet[:32])
    mean = plain.get_input_embeddings().weight.detach()[: len(base)].mean(0)
    torch.testing.assert_close(all_quiet[32:] - mean, 0.1 * (rows[0][32:] - mean), rtol=1e-3, atol=1e-5)


def test_a_code_vector_far_out_does_not_flatten_the_others(base, tokenizer):
    codes = torch.randn(16, 8)
    codes[5] = 1e3
    model = make("llama", len(base), False)
    old = model.get_input_embeddings().weight.detach().clone()
    ids = resize_scid_embeddings(model, tokenizer, "codebook", codebooks={"item": [codes, codes]}, noise=0)
    rows = model.get_input_embeddings().weight[ids[:16]].detach() - old.mean(0)
    spread = old.std(0).norm().item()
    assert rows[5].norm().item() == pytest.approx(2 * spread, rel=0.05)
    assert 0.8 < rows.norm(dim=1).median() / spread < 1.2


def test_a_model_narrower_than_the_codes_and_bf16(base, tokenizer):
    model = make("llama", len(base), False).to(torch.bfloat16)
    old = model.get_input_embeddings().weight.detach().clone()
    books = {"item": [torch.randn(16, 96), torch.randn(16, 96)]}
    ids = resize_scid_embeddings(model, tokenizer, "codebook", codebooks=books, noise=0)
    now = model.get_input_embeddings().weight.detach()
    assert now.dtype == torch.bfloat16 and torch.equal(now[: len(base)], old)
    # Half of the 96 dimensions are lost, the usual length is not.
    mean, spread = old.float().mean(0), old.float().std(0).norm().item()
    assert 0.85 < (now[ids[:32]].float() - mean).norm(dim=1).median().item() / spread < 1.15


def test_spare_rows_are_used_and_rows_are_padded(base, tokenizer):
    """Qwen2 has more rows than tokens: SCID tokens take them, and the matrix does not shrink."""
    model = make("qwen2", len(base) + 10, False)
    old = model.get_input_embeddings().weight.detach().clone()
    ids = resize_scid_embeddings(model, tokenizer, pad_to_multiple_of=64)
    now = model.get_input_embeddings().weight.detach()
    assert len(base) == 269 and len(now) == 320  # 269 + 40 tokens, rounded up
    assert torch.equal(now[: len(base)], old[: len(base)])
    assert not torch.equal(now[len(base) : len(base) + 10], old[len(base) :])
    torch.testing.assert_close(now[309:], old[: len(base)].mean(0).expand(11, 48))
    large = make("qwen2", 1000, False)
    rest = large.get_input_embeddings().weight.detach().clone()
    resize_scid_embeddings(large, tokenizer)
    assert torch.equal(large.get_input_embeddings().weight[ids[-1] + 1 :], rest[ids[-1] + 1 :])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"init": "random"}, "init: got 'random'"),
        ({"scale": 0.0}, "scale: got 0.0, expected a number above 0"),
        ({"scale": 5.0}, "scale: got 5.0, but rows around the mean start from no vectors"),
        ({"noise": -1.0}, "noise: got -1.0"),
        ({"init": "codebook"}, 'needs the vectors of "item"'),
        ({"init": "codebook", "codebooks": {"item": [np.zeros((4, 2))]}}, r"levels have \[4\] vectors.*\[16, 16\]"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_resized(arguments, words, base, tokenizer):
    model = make("llama", len(base), False)
    with pytest.raises(InputError, match=words):
        resize_scid_embeddings(model, tokenizer, **arguments)
    assert model.config.vocab_size == len(base)
