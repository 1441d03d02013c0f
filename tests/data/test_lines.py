import ast
import gzip
import json
import logging
from types import SimpleNamespace

import polars as pl
import pytest

from align3gr.data import lines
from align3gr.data.lines import Progress, json_records, line_blocks, read_json_lines
from align3gr.errors import InputError

SCHEMA = {"user": pl.String, "rating": pl.Float64, "time": pl.Int64}
RECORDS = [{"user": f"u{row}", "rating": row / 2, "time": row, "other": [row]} for row in range(50)]


def write(path, records, packed=False):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def read(path, required=("user", "time"), **options):
    parts = list(read_json_lines(path, SCHEMA, required, **options))
    return [line for numbers, _ in parts for line in numbers], pl.concat([frame for _, frame in parts])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("block_bytes", [7, 100, 1 << 20])
def test_blocks_of_any_size_give_the_same_table(tmp_path, packed, block_bytes):
    path = write(tmp_path / "log.json", RECORDS, packed)
    numbers, frame = read(path, block_bytes=block_bytes)
    assert numbers == list(range(1, 51))
    assert frame.rows() == [(f"u{row}", row / 2, row) for row in range(50)]
    assert frame.schema == SCHEMA


def test_blank_lines_and_a_missing_last_line_break(tmp_path):
    path = tmp_path / "log.json"
    path.write_bytes(
        b'{"user": "a", "time": 1}\n\n{"user": "b", "time": 2, "rating": "4.5"}\r\n{"user": "c", "time": 3.0}'
    )
    numbers, frame = read(path)
    assert numbers == [1, 3, 4]
    assert frame.rows() == [("a", None, 1), ("b", 4.5, 2), ("c", None, 3)]


def test_lines_that_are_python_literals(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text("{'user': \"it's\", 'time': 1}\n" + '{"user": null, "time": 2}\n')
    assert [record["user"] for _, record in json_records(path, ast.literal_eval)] == ["it's", None]
    with pytest.raises(InputError, match="line 1 is not a valid record"):
        list(json_records(path))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"user": "b", "time": ', "line 3 is not a valid record"),
        (b"[1]", "line 3 holds a list, expected an object"),
        (b'{"time": 2}', "line 3 has no field 'user', its fields are ['time']"),
        (b'{"user": "", "time": 2}', "line 3 has an empty field 'user'"),
        (b'{"user": "b", "time": "now"}', "line 3 has field 'time' 'now', expected a whole number"),
        (b'{"user": "b", "time": 1.5}', "line 3 has field 'time' 1.5, expected a whole number"),
        (
            b'{"user": "b", "time": 9223372036854775808}',
            "'time' 9223372036854775808, expected a whole number of 64 bits",
        ),
        (b'{"user": "b", "time": 1e19}', "'time' 1e+19, expected a whole number"),
        (b'{"user": "b", "time": 2, "rating": NaN}', "field 'rating' nan, expected a finite number"),
        (b'{"user": "\xff", "time": 2}', "line 3 is not valid UTF-8 at byte 10"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "log.json"
    path.write_bytes(b'{"user": "a", "time": 1}\n{"user": "a", "time": 1}\n' + line + b"\n")
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value) and "\n" not in str(error.value)


def test_damaged_gzip_files_are_named(tmp_path):
    path = write(tmp_path / "log.json.gz", RECORDS * 100, packed=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"log\.json\.gz: the gzip file ends too early"):
        read(path)
    path.write_bytes(content[:50] + b"\0" * 50 + content[100:])
    with pytest.raises(InputError, match="the gzip file is damaged"):
        read(path)
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        list(line_blocks(tmp_path / "none.json"))


def test_progress_is_a_log_line_where_there_is_no_terminal(tmp_path, monkeypatch, caplog):
    path = write(tmp_path / "log.json", RECORDS)
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    with caplog.at_level(logging.INFO), Progress(path) as progress:
        for part in (8, 4):
            now.seconds += 20
            progress.update(path.stat().st_size // part, 25)
    # A quarter of the file in 40 seconds; the first part came before half a minute was over.
    assert [record.getMessage() for record in caplog.records] == ["log.json: 50 lines, 25 %, 02:00 left"]
