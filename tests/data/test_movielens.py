import pytest

from align3gr.data import read_movielens_1m
from align3gr.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::1193::5::978300760\n2::5::3::978302109\n")
    movies = "1193::Café: Now (1975)::Drama\n5::Father of the Bride Part II (1995)::Comedy|Romance\n"
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    return tmp_path


def test_the_1m_release(folder):
    tables = read_movielens_1m(folder)
    assert tables.interactions.rows() == [("1", "1193", 978300760, 5.0), ("2", "5", 978302109, 3.0)]
    assert tables.items.rows() == [
        ("1193", "Café: Now (1975)", "Café: Now. Drama. 1975"),
        ("5", "Father of the Bride Part II (1995)", "Father of the Bride Part II. Comedy, Romance. 1995"),
    ]
    assert tables.users.rows() == [
        ("1", "A woman under 18 years, occupation: K-12 student."),
        ("2", "A man of 56 or more years, occupation: self-employed."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ratings.dat", "1::1193::5\n", "line 1 has 3 columns, expected 4 separated by '::'"),
        ("ratings.dat", "1::1193::5::now\n", "line 1 has timestamp 'now', expected a whole number"),
        ("movies.dat", "1::A\n", "line 1 has 2 columns, expected 3"),
        ("users.dat", "1::F::2::10::48067\n", "line 1 has gender 'F', age '2' and occupation '10'"),
        ("users.dat", "1::F::1::21::48067\n", "and occupation '21', expected M or F, one of 1, 18, 25, "),
    ],
)
def test_bad_lines_are_named(folder, name, content, words):
    (folder / name).write_text(content)
    with pytest.raises(InputError) as error:
        read_movielens_1m(folder)
    assert str(error.value).startswith(f"{folder / name}: ") and words in str(error.value)
