import pytest
import torch
import torch.nn.functional as F

from align3gr.baselines.next_item_loss import NextItemLoss, sampled_softmax
from align3gr.errors import InputError

HIDDEN, CATALOGUE = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
TARGETS = torch.tensor([0, 0])


def test_sampled_softmax_with_every_item_once_is_the_cross_entropy():
    torch.manual_seed(0)
    hidden, catalogue = torch.randn(5, 4), torch.randn(7, 4)
    targets = torch.tensor([0, 6, 3, 3, 1])
    expected = F.cross_entropy(hidden @ catalogue.T, targets)
    drawn = torch.randperm(7)
    torch.testing.assert_close(sampled_softmax(hidden, targets, catalogue, drawn, torch.full((7,), 1 / 7)), expected)


def test_sampled_softmax_estimates_the_sum_over_the_catalogue():
    torch.manual_seed(0)
    hidden, catalogue = 0.3 * torch.randn(40, 4), torch.randn(50, 4)
    targets = torch.randint(50, (40,))
    full = F.cross_entropy(hidden @ catalogue.T, targets)
    chance = torch.rand(50) + 0.2
    chance /= chance.sum()
    found = []
    for _ in range(300):
        drawn = torch.multinomial(chance, 25, replacement=True)
        found.append(sampled_softmax(hidden, targets, catalogue, drawn, chance[drawn]))
    assert abs(torch.stack(found).mean() - full) < 0.02


def drawn_negatives(negatives: int) -> torch.Tensor:
    """What a loss draws after `torch.manual_seed(5)`."""
    torch.manual_seed(5)
    return torch.randint(2, (2, negatives))


@pytest.mark.parametrize(("kind", "negatives"), [("bce", 1), ("bce", 4), ("bpr", 1), ("bpr", 4)])
def test_losses_of_pairs_by_hand(kind, negatives):
    # Scores of the item 0: 2 and 3; of the item 1: 0 and 2.
    drawn = drawn_negatives(negatives)
    assert 0 < (drawn == 1).sum() < drawn.numel() or negatives == 1
    expected = 0.0
    for row, (true, false) in enumerate(((2.0, 0.0), (3.0, 2.0))):
        others = int((drawn[row] == 1).sum())
        if kind == "bce":
            expected += -F.logsigmoid(torch.tensor(true)) - others * F.logsigmoid(torch.tensor(-false))
        else:
            expected += -others * F.logsigmoid(torch.tensor(true - false)) / negatives
    torch.manual_seed(5)
    loss = NextItemLoss(kind, negatives)(HIDDEN, TARGETS, CATALOGUE)
    torch.testing.assert_close(loss, torch.as_tensor(expected / 2))


def test_a_sample_of_half_the_catalogue_is_the_whole_sum():
    exact = NextItemLoss("softmax")(HIDDEN, TARGETS, CATALOGUE)
    torch.testing.assert_close(exact, F.cross_entropy(torch.tensor([[2.0, 0.0], [3.0, 2.0]]), TARGETS))
    assert NextItemLoss("sampled_softmax", 1)(HIDDEN, TARGETS, CATALOGUE) == exact


def test_half_of_the_draws_are_uniform_and_half_by_count():
    loss = NextItemLoss("sampled_softmax", 50)
    loss.count([[0, 0, 1], [0]], 4)
    # Three interactions with item 0 and one with item 1, of four.
    assert loss._chance.tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert [NextItemLoss(kind).negatives for kind in ("sampled_softmax", "bce", "bpr")] == [1024, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"kind": "hinge"}, "loss: got 'hinge', choose from softmax"), ({"kind": "bce", "negatives": -1}, "got -1")],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        NextItemLoss(**options)
