"""What was acknowledged is in the log once, whatever happens to the process."""

import errno
import os
import random
import subprocess
import sys
import threading

import polars as pl
import pytest

from align3gr.data import feedback_of_events, read_events
from align3gr.errors import InputError
from align3gr.serving.event_log import Event, EventLog


def event(number: int, kind: str = "click") -> Event:
    return Event("u1", str(number), 100 + number, kind, "r", number + 1, -0.5)


def journals(folder):
    return sorted(path.name for path in folder.with_name(folder.name + ".journal").iterdir())


def test_rows_come_back_as_the_feedback_reads_them(tmp_path):
    log = EventLog(tmp_path / "log")
    log.append([event(0, "impression"), Event("ü", "7", 5, "dislike")])
    assert list((tmp_path / "log").iterdir()) == []  # nothing that is not finished
    log.close()
    events = read_events(tmp_path / "log")
    assert events.rows() == [
        ("u1", "0", 100, "impression", "r", 1, -0.5),
        ("ü", "7", 5, "dislike", None, None, None),
    ]
    assert feedback_of_events(events)["feedback"].to_list() == ["neutral", "disliked"]
    assert journals(tmp_path / "log") == []


def test_a_full_journal_becomes_a_file_and_an_old_one_when_it_is_looked_at(tmp_path):
    log = EventLog(tmp_path / "log", max_events=3, max_seconds=0)
    for number in range(7):
        log.append([event(number)])
    assert len(list((tmp_path / "log").glob("*.parquet"))) == 2
    log.rotate_if_due()
    files = sorted((tmp_path / "log").glob("*.parquet"))
    assert sorted(len(pl.read_parquet(file)) for file in files) == [1, 3, 3]
    young = EventLog(tmp_path / "young", max_seconds=60)
    young.append([event(0)])
    young.rotate_if_due()
    assert list((tmp_path / "young").iterdir()) == []
    young.close()


def test_no_events_make_no_file(tmp_path):
    log = EventLog(tmp_path / "log")
    log.append([])
    log.close()
    assert list((tmp_path / "log").iterdir()) == [] and journals(tmp_path / "log") == []


def test_a_cut_line_is_left_out_and_a_journal_that_was_written_already_is_no_second_file(tmp_path, caplog):
    log = EventLog(tmp_path / "log")
    log.append([event(0), event(1)])
    log.close()
    (file,) = (tmp_path / "log").iterdir()
    journal = tmp_path / "log.journal" / f"{file.stem}.jsonl"  # killed after the file, before the journal was removed
    lines = b'["u1","0",100,"click","r",1,-0.5]\n["u1","1",101,"click","r",2,-0.5]\n'
    journal.write_bytes(lines)
    (tmp_path / "log.journal" / "other.jsonl").write_bytes(b'["u1","5",105,"like",null,null,null]\n["u1","6",10')
    EventLog(tmp_path / "log").close()
    assert sorted(read_events(tmp_path / "log")["item_id"]) == ["0", "1", "5"]
    assert "other.jsonl: 1 broken lines are left out, 1 events are kept" in caplog.text
    assert journals(tmp_path / "log") == []


def test_the_journal_of_a_process_that_lives_is_its_own(tmp_path):
    first = EventLog(tmp_path / "log")
    first.append([event(0)])
    second = EventLog(tmp_path / "log")
    second.append([event(1)])
    second.close()
    assert read_events(tmp_path / "log")["item_id"].to_list() == ["1"]
    first.append([event(2)])
    first.close()
    assert sorted(read_events(tmp_path / "log")["item_id"]) == ["0", "1", "2"]


def test_what_does_not_fit_on_the_disk_is_not_half_there(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "log")
    log.append([event(0)])
    write = os.write

    def full(file, content):
        if len(content) > 10:
            return write(file, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            log.append([Event("u1", "a" * 9, 0, "click")])
    log.append([event(2)])
    log.close()
    assert read_events(tmp_path / "log")["item_id"].to_list() == ["0", "2"]


def test_a_file_that_cannot_be_written_stays_a_journal(tmp_path, monkeypatch, caplog):
    log = EventLog(tmp_path / "log")
    log.append([event(0)])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("align3gr.serving.event_log.pq.write_table", full)
        log.rotate()
    assert "stays a journal" in caplog.text and list((tmp_path / "log").iterdir()) == []
    log.append([event(1)])
    log.close()
    assert sorted(read_events(tmp_path / "log")["item_id"]) == ["0", "1"]


def test_folders_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"--event_log .*log: holds notes\.txt, but it is for the log alone"):
        EventLog(tmp_path / "log")
    with pytest.raises(InputError, match="cannot be written"):
        EventLog(tmp_path / "log" / "notes.txt" / "log")


def test_threads_lose_nothing(tmp_path):
    log = EventLog(tmp_path / "log", max_events=50)

    def write(start):
        for number in range(start, start + 100):
            log.append([event(number)])

    threads = [threading.Thread(target=write, args=(100 * part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(map(int, read_events(tmp_path / "log")["item_id"])) == list(range(400))


WRITER = """
import sys
from align3gr.serving.event_log import Event, EventLog
log = EventLog(sys.argv[1], max_events=40)
for number in range(10**6):
    log.append([Event("u1", f"{sys.argv[2]}-{number}", number, "click")] * 3)
    print(number, flush=True)
"""


@pytest.mark.long
def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    acknowledged = {}
    for kill in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "log"), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(random.Random(kill).randrange(5, 60)):
                acknowledged[kill] = int(process.stdout.readline())
            process.kill()
    EventLog(tmp_path / "log").close()
    counts = dict(read_events(tmp_path / "log").group_by("item_id").len().rows())
    for kill, last in acknowledged.items():
        assert all(counts[f"{kill}-{number}"] == 3 for number in range(last + 1))
    assert max(counts.values()) == 3 and journals(tmp_path / "log") == []
