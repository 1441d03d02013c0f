import numpy as np
import pytest
import torch

from align3gr.baselines import HGN
from align3gr.baselines.window_training import Windows, latest_items
from align3gr.errors import InputError

SEQUENCES = [np.array([3, 1, 4]), np.array([5]), np.zeros(0, dtype=np.int64), np.array([2, 7])]


def test_windows_by_hand():
    windows = Windows(SEQUENCES, length=2, ahead=2, padding=9)
    users, history, following = windows.take(np.arange(len(windows)))
    assert users.tolist() == [0, 0, 3]
    assert history.tolist() == [[9, 3], [3, 1], [9, 2]]
    assert following.tolist() == [[1, 4], [4, 9], [7, 9]]
    assert [part.tolist() for part in windows.take(np.array([2, 1]))] == [[3, 0], [[9, 2], [3, 1]], [[7, 9], [4, 9]]]


@pytest.mark.parametrize(("length", "ahead"), [(1, 1), (3, 1), (5, 3)])
def test_windows_against_a_loop_over_the_sequences(length, ahead):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(50, size=size) for size in rng.integers(0, 9, size=40)]
    expected = []
    for user, sequence in enumerate(sequences):
        for at in range(1, len(sequence)):
            history = ([50] * length + sequence[:at].tolist())[-length:]
            expected.append((user, history, (sequence[at:].tolist() + [50] * ahead)[:ahead]))
    windows = Windows(sequences, length, ahead, padding=50)
    found = zip(*(part.tolist() for part in windows.take(np.arange(len(windows)))), strict=True)
    assert list(found) == expected


def test_nobody_has_two_items():
    assert len(Windows([np.array([1]), np.zeros(0, dtype=np.int64)], 3, 2, 9)) == len(Windows([], 3, 2, 9)) == 0
    with pytest.raises(InputError, match="no user has two interactions, which HGN needs"):
        HGN().fit([np.array([0]), np.array([1])], 2)


def test_latest_items_are_the_windows_of_the_test():
    assert latest_items(SEQUENCES, 2, 9).tolist() == [[1, 4], [9, 5], [9, 9], [2, 7]]


def test_one_of_the_items_ahead_is_learnt_at_a_time():
    seen = set()

    class Spy(HGN):
        def batch_loss(self, users, history, targets):
            seen.update(zip(history[:, -1].tolist(), targets.tolist(), strict=True))
            return super().batch_loss(users, history, targets)

    Spy(dim=2, window=1, ahead=2, epochs=15).fit([np.array([0, 1, 2, 3])], 4)
    # Each item is followed by one of the next two; nothing comes after the last.
    assert seen == {(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)}


def test_who_gave_no_window_has_an_embedding_of_zeros():
    model = HGN(dim=4, epochs=2, l2=0.01).fit(SEQUENCES, 10)
    assert not model.network.users.weight[[1, 2]].any() and model.network.users.weight[[0, 3]].all()


def test_users_do_not_depend_on_those_beside_them_and_see_the_latest_items():
    model = HGN(dim=4, window=2, epochs=2).fit(SEQUENCES, 10)
    rows = np.array([3, 0, 0])
    together = model.user_vectors([np.array([2, 7, 1]), np.array([3, 1, 4]), np.array([1, 4])], rows)
    np.testing.assert_allclose(together[1], together[2])
    np.testing.assert_allclose(model.user_vectors([np.array([7, 1])], rows[:1])[0], together[0], rtol=1e-5)
    # The same items of another user.
    other = model.user_vectors([np.array([7, 1])], np.array([0]))[0]
    assert np.abs(other - together[0]).max() > 1e-3
    assert model.user_vectors([], np.zeros(0, dtype=np.int64)).shape == (0, 5)


def test_the_same_seed_gives_the_same_vectors():
    first, again, other = (HGN(seed=seed, dim=4, epochs=2).fit(SEQUENCES, 10) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.item_vectors(), again.item_vectors())
    assert not np.array_equal(first.item_vectors(), other.item_vectors())


def test_weight_decay_reaches_the_optimizer():
    # Item 9 is in no window: only decay moves its embedding.
    first = HGN(dim=4, epochs=1, l2=0.0).fit(SEQUENCES, 10).network.items.weight[9]
    longer = HGN(dim=4, epochs=9, l2=0.0).fit(SEQUENCES, 10).network.items.weight[9]
    decayed = HGN(dim=4, epochs=9, l2=0.1).fit(SEQUENCES, 10).network.items.weight[9]
    torch.testing.assert_close(first, longer)
    assert torch.linalg.norm(decayed) < torch.linalg.norm(longer)


@pytest.mark.parametrize("options", [{"window": 0}, {"ahead": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match="got 0, expected at least 1"):
        HGN(**options)
