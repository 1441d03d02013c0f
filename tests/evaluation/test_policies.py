import numpy as np

from align3gr.evaluation import latest_then


def test_the_latest_items_stand_in_front_of_the_others():
    histories = [np.array([3, 4, 3, 5, 5]), np.array([7]), np.array([], dtype=np.int64)]
    unseen = np.array([[9, 8, 6, 1], [2, 3, -1, -1], [1, -1, 2, -1]])
    assert latest_then(histories, unseen, 2).tolist() == [[5, 3, 9, 8], [7, 2, 3, -1], [1, 2, -1, -1]]
    assert latest_then(histories, unseen, 0).tolist() == [[9, 8, 6, 1], [2, 3, -1, -1], [1, 2, -1, -1]]
    assert latest_then(histories, unseen, 9)[0].tolist() == [5, 3, 4, 9]
