from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import OutputError
from sailplan.evaluate.comparison import Answer, RowLoss
from sailplan.evaluate.journal import Journal, alone, key_of

ANSWER = Answer(text="four 红 cats\n\x00 \udc80", num_tokens=3, ended=True)
LOSS = RowLoss(loss_sum=1.5, num_tokens=4, num_top1=2)


def test_journal_of_another_rank_is_read_with_answers_and_losses(tmp_path: Path) -> None:
    Journal(folder=tmp_path, rank=1).add("answer", {"a": ANSWER})
    Journal(folder=tmp_path, rank=0).add("loss", {"b": LOSS})
    journal = Journal(folder=tmp_path)
    journal.read()
    assert journal["a"] == ANSWER
    assert journal["b"] == LOSS
    assert journal.missing(["a", "b", "c"]) == ["c"]


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_line_that_a_kill_cut_off_is_left_out_and_what_follows_is_not_lost(
    tmp_path: Path, kept: int
) -> None:
    first = Journal(folder=tmp_path)
    first.add("loss", {"a": LOSS})
    file = tmp_path / "journal-0.jsonl"
    whole = file.stat().st_size
    first.add("answer", {"b": ANSWER})
    with file.open("r+b") as cut:
        cut.truncate(whole + kept)
    again = Journal(folder=tmp_path)
    again.read()
    assert "a" in again
    assert "b" not in again
    again.add("answer", {"b": ANSWER, "c": ANSWER})
    last = Journal(folder=tmp_path)
    last.read()
    assert last.missing(["a", "b", "c"]) == []


def test_line_of_something_else_is_left_out(tmp_path: Path) -> None:
    lines = ['{"key": "a"}', "[1]", "null", '{"key": "b", "answer": {"words": 1}}', "\xff", ""]
    (tmp_path / "journal-0.jsonl").write_text("\n".join(lines))
    journal = Journal(folder=tmp_path)
    journal.read()
    assert journal.missing(["a", "b"]) == ["a", "b"]


def test_key_changes_with_every_part() -> None:
    found = {
        key_of("answer", "a", {"n": 1}),
        key_of("loss", "a", {"n": 1}),
        key_of("answer", "b", {"n": 1}),
        key_of("answer", "a", {"n": 2}),
    }
    assert len(found) == 4


def test_second_comparison_at_once_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path / "new" / "folder"):
        refused = pytest.raises(OutputError, match="another comparison is at work")
        with refused, alone(tmp_path / "new" / "folder"):
            pass
    with alone(tmp_path / "new" / "folder"):
        pass


def test_folder_that_cannot_be_made_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), alone(tmp_path / "file" / "folder"):
        pass
