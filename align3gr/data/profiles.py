"""User profiles: the data's own text where there is one, else a text made from the user's train interactions.

A made profile names the topics that set the user's items apart and the latest titles. Topics are the short phrases of
the item texts (categories, genres) and the words of longer ones, weighed by tf-idf. It never sees a held-out item.
"""

import polars as pl

from align3gr.data.schema import ITEM_ID, ITEMS, PROFILE, TEXT, TITLE, USER_ID

MAX_PHRASE_WORDS = 3
# A topic that hardly any item shares says nothing beyond the title.
MIN_ITEMS_OF_TOPIC = 3
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
    empty = users.filter(pl.col(PROFILE).str.strip_chars() == "").select(USER_ID)
    if empty.is_empty():
        return users
    # One row per interaction, with `position` counting from the oldest.
    pairs = (
        train.join(empty, on=USER_ID, how="semi", maintain_order="left")
        .select(USER_ID, pl.col(ITEMS).alias(ITEM_ID))
        .explode(ITEM_ID, empty_as_null=False)
        .with_columns(position=pl.int_range(pl.len()).over(USER_ID))
    )
    made = (
        empty.join(_user_topics(pairs, items, num_topics), on=USER_ID, how="left", maintain_order="left")
        .join(_latest_titles(pairs, items, num_titles), on=USER_ID, how="left", maintain_order="left")
        .select(
            USER_ID,
            pl.concat_str(
                "Interested in " + pl.col("topics") + ".",
                "Lately chose " + pl.col("titles") + ".",
                separator=" ",
                ignore_nulls=True,
            ).alias("made"),
        )
    )
    return users.join(made, on=USER_ID, how="left", maintain_order="left").select(
        USER_ID, pl.coalesce("made", PROFILE).alias(PROFILE)
    )


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


def _user_topics(pairs: pl.DataFrame, items: pl.DataFrame, num_topics: int) -> pl.DataFrame:
    """user_id, topics ("a, b, c"): the highest tf-idf over the user's interactions, equal ones by the alphabet."""
    topics = item_topics(items).with_columns(items_of_topic=pl.len().over("topic"))
    idf = (pl.lit(float(items.height)) / pl.col("items_of_topic")).log()
    topics = topics.filter(pl.col("items_of_topic") >= MIN_ITEMS_OF_TOPIC).with_columns(idf=idf)
    return (
        pairs.join(topics, on=ITEM_ID, how="inner")
        .group_by(USER_ID, "topic")
        .agg(count=pl.len(), idf=pl.col("idf").first())
        .sort(USER_ID, pl.col("count") * pl.col("idf"), "topic", descending=[False, True, False])
        .group_by(USER_ID, maintain_order=True)
        .head(num_topics)
        .group_by(USER_ID, maintain_order=True)
        .agg(topics=pl.col("topic").str.join(", "))
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
