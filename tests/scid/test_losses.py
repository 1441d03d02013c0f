import math

import pytest
import torch
from torch import nn

from align3gr.scid.losses import CodebookDiversity, collaborative_contrast, u2i_loss

USERS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
ITEMS = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
# scores: user 0: 1, 3; user 1: 2, 2. The positives stand on the diagonal.


def test_temperature_divides_the_scores():
    expected = (math.log(math.exp(0.5) + math.exp(1.5)) - 0.5 + math.log(2)) / 2
    assert u2i_loss(USERS, ITEMS, temperature=2.0).item() == pytest.approx(expected, abs=1e-6)


def test_log_q_comes_off_the_scores_of_popular_items():
    log_q = torch.log(torch.tensor([0.25, 0.75]))
    # exp(score - log q) = exp(score) / q, for the positive as for the negative
    first = math.log(math.exp(1) / 0.25 + math.exp(3) / 0.75) - math.log(math.exp(1) / 0.25)
    second = math.log(math.exp(2) / 0.25 + math.exp(2) / 0.75) - math.log(math.exp(2) / 0.75)
    assert u2i_loss(USERS, ITEMS, log_q=log_q).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_log_q_is_not_divided_by_the_temperature():
    log_q = torch.log(torch.tensor([0.25, 0.75]))
    first = math.log(math.exp(0.5) / 0.25 + math.exp(1.5) / 0.75) - math.log(math.exp(0.5) / 0.25)
    second = math.log(1 / 0.25 + 1 / 0.75) - math.log(1 / 0.75)
    loss = u2i_loss(USERS, ITEMS, temperature=2.0, log_q=log_q)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_collaborative_contrast_leaves_out_another_row_of_the_same_item():
    quantized = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    vectors = torch.tensor([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    # Item 7 is drawn twice: scores of its rows are 2, 0, 2, of which the other 2 is no negative.
    twice = math.log(math.exp(2) + 1) - 2
    # Item 5: scores 0, 1, 0; both rows of item 7 are negatives.
    once = math.log(math.exp(1) + 2) - 1
    loss = collaborative_contrast(quantized, vectors, torch.tensor([7, 5, 7]))
    assert loss.item() == pytest.approx((2 * twice + once) / 3, abs=1e-6)
    apart = collaborative_contrast(quantized, vectors, torch.tensor([7, 5, 8]))
    assert apart.item() == pytest.approx((2 * (math.log(2 * math.exp(2) + 1) - 2) + once) / 3, abs=1e-6)


def book(*rows: list[float]) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.tensor(rows))])


def test_diversity_of_two_pairs_of_codes_by_hand():
    books = book([1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1])
    loss = CodebookDiversity(clusters=2)(books, torch.tensor([[0], [3]]))

    def term(positive: float, *others: float) -> float:
        return math.log(sum(math.exp(score) for score in (positive, *others))) - positive

    # Code 0 and its mate 1: inner product 1; with 2 and 3: -1. Code 3 and its mate 2: 1; with 0: -1, with 1: -0.99.
    expected = (term(1.0, -1.0, -1.0) + term(1.0, -1.0, -0.99)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert (books[0].grad[2] @ torch.tensor([-1.0, 0.1])).item() < 0  # code 2 is drawn towards code 3


def test_small_books_have_groups_of_two():
    books = book([1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1])
    codes = torch.tensor([[0], [3]])
    assert (
        CodebookDiversity(clusters=10)(books, codes).item() == CodebookDiversity(clusters=2)(books, codes).item() > 0
    )


def test_diversity_of_a_code_that_is_alone_in_its_group_is_nothing():
    books = book([1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-9.0, 0.0])
    loss = CodebookDiversity(clusters=2)(books, torch.tensor([[3]]))
    assert loss.item() == 0
    loss.backward()


def test_diversity_groups_the_codes_anew():
    books = book([1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1])
    diversity = CodebookDiversity(clusters=2, refresh=2)
    codes = torch.tensor([[0]])
    diversity(books, codes)
    with torch.no_grad():  # now 0 belongs to 2, and 1 to 3
        books[0].copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.1], [-1.0, 0.1]]))
    stale, fresh = diversity(books, codes).item(), diversity(books, codes).item()
    total = math.log(math.exp(1) + 2 * math.exp(-1))
    assert stale == pytest.approx(total + 1, abs=1e-6)  # still drawn to code 1, whose product is now -1
    assert fresh == pytest.approx(total - 1, abs=1e-6)
