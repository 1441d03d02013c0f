import polars as pl
import pytest

from align3gr.data.texts import clean_column, clean_text, review_texts

TEXTS = {
    "plain": "plain",
    "  ends ": "ends",
    "a&nbsp;b": "a b",
    "AT&amp;T": "AT&T",
    "5 < 6 and 7 > 2": "5 < 6 and 7 > 2",
    "one<br />two": "one two",
    "<p>x</p><script>var a = '<b>';</script>y": "x y",
    "<STYLE>p {}</STYLE>z": "z",
    "&lt;b&gt;bold&lt;/b&gt;": "bold",
    "two\n\n lines": "two lines",
    "": "",
}


@pytest.mark.parametrize("text", TEXTS)
def test_markup_goes_and_text_stays(text):
    assert clean_text(text) == TEXTS[text]


def test_a_column_is_cleaned_as_single_texts_are():
    column = clean_column(pl.Series([*TEXTS, None]))
    assert column.to_list() == [*TEXTS.values(), None]


def test_a_review_is_summary_and_text():
    summary = pl.Series(["Great", "Why?", "Only this", None, "", None])
    text = pl.Series(["It <b>rings</b>", "No idea", " ", "Alone", None, None])
    expected = ["Great. It rings", "Why? No idea", "Only this", "Alone", None, None]
    assert review_texts(summary, text).to_list() == expected
    assert review_texts(None, text).to_list() == ["It rings", "No idea", None, "Alone", None, None]
