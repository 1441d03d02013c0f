import polars as pl

from align3gr.data.profiles import item_topics, with_profiles

ITEMS = pl.DataFrame(
    [
        ("a", "Nonna", "Nonna. Pizza, Italian, Food"),
        ("b", "Roma", "Roma. Pizza, Italian, Food"),
        ("c", "Napoli", "Napoli. Pizza, Food"),
        ("d", "Sakura", "Sakura. Sushi Bars, Food"),
        ("e", "Kyoto", "Kyoto. Sushi Bars, Food"),
        ("f", "Osaka", "Osaka. Sushi Bars, Food"),
        ("g", "Bean", "Bean. A cosy place that roasts its own beans!"),
    ],
    schema=["item_id", "title", "text"],
    orient="row",
)


def train(*histories):
    users = [f"u{row}" for row in range(len(histories))]
    return pl.DataFrame({"user_id": users, "items": list(histories)})


def users(*profiles):
    return pl.DataFrame({"user_id": [f"u{row}" for row in range(len(profiles))], "profile": list(profiles)})


def test_topics_are_short_phrases_and_words_of_long_ones():
    topics = item_topics(ITEMS)
    assert topics.filter(pl.col("item_id") == "a")["topic"].to_list() == ["pizza", "italian", "food"]
    assert topics.filter(pl.col("item_id") == "d")["topic"].to_list() == ["sushi bars", "food"]
    # Words of four letters or more; "its", "own" and "A" are too short.
    assert set(topics.filter(pl.col("item_id") == "g")["topic"]) == {"cosy", "place", "that", "roasts", "beans"}


def test_own_profiles_stay_and_empty_ones_are_made():
    out = with_profiles(users("Likes tea.", " "), train(["a"], ["d", "a", "b", "b"]), ITEMS)
    assert out["user_id"].to_list() == ["u0", "u1"]
    # idf by hand: pizza ln(7/3) over 3 interactions beats sushi bars ln(7/3) over 1 and food ln(7/6) over 4
    # (2.54, 0.85, 0.62); italian is a topic of two items only.
    assert out["profile"].to_list() == [
        "Likes tea.",
        "Interested in pizza, sushi bars, food. Lately chose Roma; Nonna; Sakura.",
    ]


def test_numbers_of_topics_and_titles_are_limits():
    out = with_profiles(users(""), train(["d", "a", "b", "b"]), ITEMS, num_topics=1, num_titles=2)
    assert out["profile"].item() == "Interested in pizza. Lately chose Roma; Nonna."


def test_a_user_whose_items_have_no_topic_gets_titles_only():
    assert with_profiles(users(""), train(["g"]), ITEMS)["profile"].item() == "Lately chose Bean."


def test_equal_topics_come_in_the_order_of_the_alphabet():
    out = with_profiles(users(""), train(["d", "c"]), ITEMS)["profile"].item()
    # food: 2 x ln(7/6) = 0.31; pizza and sushi bars: ln(7/3) = 0.85 each.
    assert out.startswith("Interested in pizza, sushi bars, food.")
