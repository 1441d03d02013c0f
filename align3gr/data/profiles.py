"""User profiles: the data's own text where there is one, else a text made from the user's train interactions.

A made profile names the topics that set the user's items apart and the latest titles. Topics are the short phrases of
the item texts (categories, genres) and the words of longer ones, weighed by tf-idf. It never sees a held-out item.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl
import scipy.sparse as sp

from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, TEXT, TITLE, USER_ID

MAX_PHRASE_WORDS = 3
# A topic that hardly any item shares says nothing beyond the title.
MIN_ITEMS_OF_TOPIC = 3
# Both bound the memory: the profiles of one slice of the users are made at a time.
INTERACTIONS_AT_A_TIME = 200_000
ITEMS_AT_A_TIME = 20_000
WORD_PATTERN = r"[\p{L}\p{N}'&/-]+"


def with_profiles(
    users: pl.DataFrame, train: pl.DataFrame, items: pl.DataFrame, num_topics: int = 5, num_titles: int = 3
) -> pl.DataFrame:
    """Fill the empty profiles of `users`; the others stay as they are.

    Args:
        users: user_id, profile.
        train: user_id, items (list, oldest first), the same rows as `users`.
        items: item_id, title, text.
        num_topics: topics named in a made profile, at most.
        num_titles: latest distinct titles named, at most.

    Returns:
        user_id, profile in the order of `users`. The same input gives the same text, byte for byte.
    """
    empty = users[PROFILE].str.strip_chars() == ""
    if not empty.any():
        return users
    histories = train.select(USER_ID, ITEMS).filter(empty)
    topics = _Topics(items)
    made = pl.concat(
        _made(histories[start:stop], topics, items, num_topics, num_titles)
        for start, stop in _slices(histories[ITEMS].list.len().to_numpy(), INTERACTIONS_AT_A_TIME)
    )
    if not empty.all():
        made = users[PROFILE].scatter(empty.arg_true(), made)
    return users.select(USER_ID, made.alias(PROFILE))


def item_topics(items: pl.DataFrame) -> pl.DataFrame:
    """The topics of each item: the phrases of its text of at most three words, and the words (of four letters or more)
    of longer ones; lower case.

    Returns:
        item_id, topic; distinct rows.
    """
    phrases = items.select(
        ITEM_ID,
        # Texts commonly begin with the title, which is no topic.
        phrase=pl.col(TEXT).str.strip_prefix(pl.col(TITLE)).str.to_lowercase().str.split(","),
    ).explode("phrase", empty_as_null=False)
    phrases = (
        phrases.with_columns(pl.col("phrase").str.replace_all(r"[.;:|!?\n]+", ".").str.split("."))
        .explode("phrase", empty_as_null=False)
        .with_columns(pl.col("phrase").str.strip_chars(), words=pl.col("phrase").str.extract_all(WORD_PATTERN))
    )
    short = pl.col("words").list.len() <= MAX_PHRASE_WORDS
    long_words = (phrases.filter(~short).select(ITEM_ID, topic="words").explode("topic", empty_as_null=False)).filter(
        pl.col("topic").str.len_chars() >= 4
    )
    return (
        pl.concat([phrases.filter(short).select(ITEM_ID, topic="phrase"), long_words])
        .filter(pl.col("topic").str.contains(r"\p{L}"))
        .unique(maintain_order=True)
    )


class HistoryTopics:
    """What histories are about, in words: the topics that made profiles name.

    Args:
        items: item_id, title, text; a history names items by their row.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self._topics = _Topics(items)
        self._item_ids = items[ITEM_ID]

    def of_histories(self, histories: Sequence[np.ndarray], num_topics: int = 5) -> list[str]:
        """For each history its topics of the highest tf-idf, such as "sushi bars, tacos"; empty where it has none."""
        users = pl.DataFrame({USER_ID: [str(row) for row in range(len(histories))]})
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        taken = np.concatenate([*histories, np.empty(0, dtype=np.int64)]).astype(np.int64)
        pairs = pl.DataFrame(
            {
                USER_ID: users[USER_ID].gather(np.repeat(np.arange(len(lengths)), lengths)),
                ITEM_ID: self._item_ids[taken],
            }
        )
        topics = _user_topics(users, pairs, self._topics, num_topics)
        return users.join(topics, on=USER_ID, how="left", maintain_order="left")["topics"].fill_null("").to_list()

    def of_items(self) -> list[list[str]]:
        """The topics of each item that other items share; in alphabetical order."""
        matrix = self._topics.matrix.sorted_indices()
        names = self._topics.names.to_list()
        return [
            [names[column] for column in matrix.indices[start:stop]]
            for start, stop in itertools.pairwise(matrix.indptr.tolist())
        ]


class _Topics:
    """Which item has which topic, and how rare each topic is.

    Attributes:
        names: the topics that enough items share, in alphabetical order.
        idf: (topics,) float64.
        matrix: (items, topics) 0 or 1, sparse.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        topic_type = pl.Categorical(pl.Categories.random())
        parts = []
        for start in range(0, items.height, ITEMS_AT_A_TIME):
            part = items[start : start + ITEMS_AT_A_TIME]
            rows = pl.DataFrame({ITEM_ID: part[ITEM_ID]}).with_row_index("row", offset=start)
            parts.append(
                item_topics(part)
                .join(rows, on=ITEM_ID, how="left", maintain_order="left")
                .select("row", pl.col("topic").cast(topic_type))
            )
        pairs = pl.concat(parts) if parts else pl.DataFrame(schema={"row": pl.UInt32, "topic": topic_type})
        # The index of items, which counts from 0, is the row of the matrix.
        shared = pairs.group_by("topic").len("items").filter(pl.col("items") >= MIN_ITEMS_OF_TOPIC)
        shared = shared.with_columns(name=pl.col("topic").cast(pl.String)).sort("name").with_row_index("column")
        idf = shared.select((pl.lit(float(items.height)) / pl.col("items")).log())
        pairs = pairs.join(shared.select("topic", "column"), on="topic", how="inner")
        self.names, self.idf = shared["name"], idf.to_series().to_numpy()
        ones = np.ones(pairs.height, dtype=np.int32)
        places = (pairs["row"].to_numpy().astype(np.int64), pairs["column"].to_numpy().astype(np.int64))
        self.matrix = sp.csr_matrix((ones, places), shape=(items.height, shared.height))
        self.item_rows = pl.DataFrame({ITEM_ID: items[ITEM_ID]}).with_row_index("item_row")


def _slices(lengths: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Consecutive ranges of users that hold about `most` interactions together."""
    group = np.cumsum(lengths) // most
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(lengths)]
    return list(itertools.pairwise(edges))


def _made(
    histories: pl.DataFrame, topics: _Topics, items: pl.DataFrame, num_topics: int, num_titles: int
) -> pl.Series:
    """The profiles of some users, empty where there is nothing to say."""
    # One row per interaction, with `position` counting from the oldest.
    pairs = (
        histories.select(USER_ID, pl.col(ITEMS).alias(ITEM_ID))
        .explode(ITEM_ID, empty_as_null=False)
        .with_columns(position=pl.int_range(pl.len()).over(USER_ID))
    )
    users = histories.select(USER_ID)
    return (
        users.join(_user_topics(users, pairs, topics, num_topics), on=USER_ID, how="left", maintain_order="left")
        .join(_latest_titles(pairs, items, num_titles), on=USER_ID, how="left", maintain_order="left")
        .select(
            pl.concat_str(
                "Interested in " + pl.col("topics") + ".",
                "Lately chose " + pl.col("titles") + ".",
                separator=" ",
                ignore_nulls=True,
            ).fill_null("")
        )
        .to_series()
    )


def _user_topics(users: pl.DataFrame, pairs: pl.DataFrame, topics: _Topics, num_topics: int) -> pl.DataFrame:
    """user_id, topics ("a, b, c"): the highest tf-idf over the user's interactions, equal ones by the alphabet."""
    user_rows = pairs.join(users.with_row_index("user_row"), on=USER_ID, how="left", maintain_order="left")["user_row"]
    item_rows = pairs.join(topics.item_rows, on=ITEM_ID, how="left", maintain_order="left")["item_row"]
    shape = (users.height, topics.matrix.shape[0])
    taken = sp.csr_matrix((np.ones(pairs.height, dtype=np.int32), (user_rows.to_numpy(), item_rows.to_numpy())), shape)
    counts = (taken @ topics.matrix).tocoo()  # (users, topics)
    order = np.lexsort((counts.col, -counts.data * topics.idf[counts.col], counts.row))
    rows, columns = counts.row[order], counts.col[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    rows, columns = rows[place < num_topics], columns[place < num_topics]
    return (
        pl.DataFrame([users[USER_ID].gather(rows), topics.names.gather(columns).alias("topics")])
        .group_by(USER_ID, maintain_order=True)
        .agg(pl.col("topics").str.join(", "))
    )


def _latest_titles(pairs: pl.DataFrame, items: pl.DataFrame, num_titles: int) -> pl.DataFrame:
    """user_id, titles ("a; b"): the latest first, each item once, empty titles left out."""
    return (
        pairs.join(items.select(ITEM_ID, TITLE).filter(pl.col(TITLE) != ""), on=ITEM_ID, how="inner")
        .sort(USER_ID, "position", descending=[False, True])
        .unique([USER_ID, ITEM_ID], keep="first", maintain_order=True)
        .group_by(USER_ID, maintain_order=True)
        .head(num_titles)
        .group_by(USER_ID, maintain_order=True)
        .agg(titles=pl.col(TITLE).str.join("; "))
    )
