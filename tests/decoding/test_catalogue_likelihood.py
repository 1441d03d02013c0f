"""Probabilities of items over the catalogue, against the same quotients taken prefix by prefix in plain Python."""

import pytest
import torch
from transformers import LogitsProcessorList

from align3gr.decoding import SCIDLogitsProcessor, catalogue_likelihood
from align3gr.decoding.beam_search import ConstrainedBeamSearch
from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.decoding.exhaustive_search import ExhaustiveSearch
from align3gr.decoding.stochastic_beams import StochasticBeamSearch
from align3gr.decoding.trie import SCIDTrie
from align3gr.errors import InputError

PROMPTS = [[1, 12, 18, 25], [1, 50, 51, 52, 53, 11, 17, 24, 45], [7]]
INPUT_IDS = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in PROMPTS])
MASK = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
LEVEL_TOKENS = torch.arange(10, 49).view(3, 13)
CODES = torch.unique(torch.randint(13, (60, 3), generator=torch.Generator().manual_seed(3)), dim=0)
TOKENS = torch.stack([LEVEL_TOKENS[level][CODES[:, level]] for level in range(3)], dim=1)
TRIE = SCIDTrie.from_codes(CODES, (13, 13, 13))


@torch.no_grad()
def plain_scores(model, prompt) -> list[float]:
    """One forward a step, and the quotient of exponentials over the tokens that some item has there."""
    rows = TOKENS.tolist()
    scores = []
    for row in rows:
        score = 0.0
        for level in range(3):
            logits = model(torch.tensor([prompt + row[:level]])).logits[0, -1].double().exp()
            possible = {other[level] for other in rows if other[:level] == row[:level]}
            score += (logits[row[level]] / sum(logits[token] for token in possible)).log().item()
        scores.append(score)
    return scores


@pytest.fixture(params=[10**9, 0], ids=["all codes of a level", "codes that can follow"])
def either_way(request, monkeypatch):
    """Both ways to take the logits of a level, whatever its size."""
    monkeypatch.setattr(catalogue_likelihood, "_FEW", request.param)


@pytest.fixture(scope="module")
def truth(tiny_model):
    return [plain_scores(tiny_model(), prompt) for prompt in PROMPTS]


def searches(model):
    every = TRIE.num_nodes
    yield ConstrainedBeamSearch(model, TRIE, LEVEL_TOKENS, every[-1], every, "catalogue")
    yield ExhaustiveSearch(model, TRIE, LEVEL_TOKENS, "catalogue")
    model.config.scid_normalizer = "catalogue"  # what a model trained so says of itself
    yield ConstrainedBeamSearch(model, TRIE, LEVEL_TOKENS, every[-1], every)
    yield ExhaustiveSearch(model, TRIE, LEVEL_TOKENS)
    yield StochasticBeamSearch(model, TRIE, LEVEL_TOKENS, every[-1], seed=1)


def test_all_searches_give_probabilities_that_sum_to_one(tiny_model, truth):
    for search in searches(tiny_model()):
        output = search.search(INPUT_IDS, MASK).top(len(CODES))
        for items, scores, expected in zip(output.items, output.scores, truth, strict=True):
            assert sorted(items.tolist()) == list(range(len(CODES)))
            assert scores.tolist() == pytest.approx([expected[item] for item in items], abs=1e-4)
            assert scores.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_another_model_is_searched_as_it_was_trained(tiny_model):
    plain, trained_so = tiny_model(), tiny_model(seed=1)
    trained_so.config.scid_normalizer = "catalogue"
    search = ExhaustiveSearch(plain, TRIE, LEVEL_TOKENS)
    assert search.normalizer == "vocabulary" and search.with_model(trained_so).normalizer == "catalogue"
    assert search.with_model(trained_so).with_model(plain).normalizer == "vocabulary"
    given = ExhaustiveSearch(plain, TRIE, LEVEL_TOKENS, "level")
    assert given.with_model(trained_so).normalizer == "level"


def test_what_may_not_be_shown_keeps_its_share(tiny_model, truth):
    for search in searches(tiny_model()):
        output = search.search(INPUT_IDS, MASK, denied=[0, 7, 30]).top(len(CODES) - 3)
        for items, scores, expected in zip(output.items, output.scores, truth, strict=True):
            assert sorted(items.tolist()) == [item for item in range(len(CODES)) if item not in (0, 7, 30)]
            assert scores.tolist() == pytest.approx([expected[item] for item in items], abs=1e-4)


def test_the_loss_is_the_mean_over_labels(tiny_model, truth, either_way):
    model = tiny_model()
    answers = [4, 11, 29]
    rows = [prompt + TOKENS[item].tolist() for prompt, item in zip(PROMPTS, answers, strict=True)]
    input_ids = torch.tensor([[0] * (12 - len(row)) + row for row in rows])
    labels = torch.full_like(input_ids, -100)
    labels[:, -3:] = input_ids[:, -3:]
    mask = torch.cat([MASK, torch.ones(3, 3, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits = model(input_ids, attention_mask=mask, position_ids=positions).logits
    likelihood = CatalogueLikelihood(TRIE, LEVEL_TOKENS)
    expected = -sum(scores[item] for scores, item in zip(truth, answers, strict=True))
    assert likelihood.loss(logits, labels).item() == pytest.approx(expected / 9, abs=1e-5)
    assert likelihood.loss(logits, labels, 18).item() == pytest.approx(expected / 18, abs=1e-5)
    # A label of words is normalised over the vocabulary, beside SCIDs in the same row.
    labels[1, 4] = input_ids[1, 4]
    word = -logits[1, 3].log_softmax(-1)[input_ids[1, 4]].item()
    assert likelihood.loss(logits, labels).item() == pytest.approx((expected + word) / 10, abs=1e-5)
    labels[:] = -100
    assert likelihood.loss(logits, labels, 5).item() == 0.0


@pytest.mark.parametrize("level_tokens", [LEVEL_TOKENS, LEVEL_TOKENS.flip(1)], ids=["ranges", "scattered"])
def test_the_loss_of_states_is_that_of_all_their_logits(level_tokens, either_way):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 6, 8, generator=generator, requires_grad=True)
    head = torch.randn(60, 8, generator=generator, requires_grad=True)
    rows = [level_tokens[torch.arange(3), CODES[item]].tolist() for item in (4, 11, 29)]
    labels = torch.tensor([[-100, *rows[0], 3, -100], [*[-100] * 3, *rows[1]]])  # with a word behind an SCID
    likelihood = CatalogueLikelihood(TRIE, level_tokens)
    expected = likelihood.loss(states @ head.T, labels, 5)
    found = likelihood.loss_of_states(states, head, labels, 5)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = [torch.autograd.grad(loss, [states, head]) for loss in (expected, found)]
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    labels[1, 4] = -100
    with pytest.raises(InputError, match="a part of an SCID"):
        likelihood.loss_of_states(states, head, labels)


def test_only_logits_of_the_catalogue_get_gradients(either_way):
    logits = torch.randn(1, 4, 60, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[-100, *TOKENS[5].tolist()]])
    CatalogueLikelihood(TRIE, LEVEL_TOKENS).loss(logits, labels).backward()
    rows = TOKENS.tolist()
    for level in range(3):
        possible = {row[level] for row in rows if row[:level] == rows[5][:level]}
        moved = set(logits.grad[0, level].nonzero()[:, 0].tolist())
        assert moved == (possible if len(possible) > 1 else set())
        assert logits.grad[0, level].sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-100, 10, 23, -100], "part of an SCID"),
        ([-100, -100, 10, 23], "part of an SCID"),
        ([-100, 23, 36, 10], "part of an SCID"),
        ([-100, 10, 10, 36], "part of an SCID"),
        ([-100, 10, 23, 36], "no SCID of the catalogue"),
    ],
)
def test_labels_that_are_no_items_are_refused(labels, message, either_way):
    assert [0, 0, 0] not in CODES.tolist()
    with pytest.raises(InputError, match=message):
        CatalogueLikelihood(TRIE, LEVEL_TOKENS).loss(torch.zeros(1, 4, 60), torch.tensor([labels]))


def test_tokens_of_other_things_are_refused(either_way):
    with pytest.raises(InputError, match="no SCID of the catalogue"):
        CatalogueLikelihood(TRIE, LEVEL_TOKENS).log_probs(
            torch.zeros(3, 60), torch.tensor([[0, 1, 2]]), torch.tensor([[55, 23, 36]])
        )


def test_generate_gives_the_same_where_it_normalises_after_the_processor(tiny_model, truth):
    model = tiny_model()
    prompt = torch.tensor([PROMPTS[1]])
    processor = SCIDLogitsProcessor(TRIE, LEVEL_TOKENS, prompt.shape[1])
    output = model.generate(
        prompt,
        logits_processor=LogitsProcessorList([processor]),
        renormalize_logits=True,
        num_beams=20,
        num_return_sequences=5,
        max_new_tokens=3,
        eos_token_id=None,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = [TOKENS.tolist().index(row[-3:]) for row in output.sequences.tolist()]
    assert output.sequences_scores.tolist() == pytest.approx([truth[1][item] for item in found], abs=1e-4)
    assert found == sorted(range(len(CODES)), key=lambda item: -truth[1][item])[:5]


def test_tokens_may_stand_anywhere_in_the_vocabulary():
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    logits = torch.randn(2, 4, 60, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[-100, *TOKENS[5].tolist()], [-100, *TOKENS[8].tolist()]])
    expected = CatalogueLikelihood(TRIE, LEVEL_TOKENS).loss(logits, labels)
    moved = torch.empty_like(logits)
    moved[..., order] = logits  # token t is now token order[t]
    labels[:, 1:] = order[labels[:, 1:]]
    found = CatalogueLikelihood(TRIE, order[LEVEL_TOKENS]).loss(moved, labels)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_another_device_gets_one_copy_however_often_it_asks(monkeypatch):
    moved = []  # a trie cannot be built where there are no numbers, on the one other device that is always there
    monkeypatch.setattr(SCIDTrie, "to", lambda trie, device: moved.append(device) or trie)
    likelihood = CatalogueLikelihood(TRIE, LEVEL_TOKENS)
    copied = likelihood.to("meta")
    assert copied is not likelihood and copied is likelihood.to("meta") and likelihood.to("cpu") is likelihood
    assert moved == [torch.device("meta")]
