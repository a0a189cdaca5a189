from __future__ import annotations

from pathlib import Path

import pytest

from node.persistence import tail_format
from node.persistence.directory import DataDirectory
from node.persistence.faults import OtherFormat
from node.persistence.tail_files import LoadedTail, TailFiles
from node.persistence.tail_format import (
    CLOSED,
    END_AT,
    GAP,
    RECORDS_AT,
    STATE_AT,
    WORD,
    Entry,
    Kind,
    Record,
    encoded,
    header,
    seed,
)

LIFE, CUT = 7, 9
ENTRIES: list[Entry] = [(10 + at, 1 + at // 2, bytes([at + 1]) * (at * 3)) for at in range(6)]
RECORDS = [Record(Kind.ENTRY, *entry) for entry in ENTRIES]
START = Record(Kind.START, CUT, 0)


@pytest.fixture
def files(directory: DataDirectory) -> TailFiles:
    return TailFiles(directory)


def segment(
    files: TailFiles, sequence: int, *records: Record, state: int = 0, room: int = 500
) -> Path:
    """A segment as it stands on the disk of a killed process, with room for more records."""
    body = b"".join(encoded(record, seed(LIFE, sequence)) for record in records)
    path = files.path / f"{LIFE}-{sequence:06d}.tail"
    end = RECORDS_AT + len(body)
    path.write_bytes(header(LIFE, sequence, end, state) + body + bytes(room))
    return path


def entries_and_flaw(files: TailFiles, cut: int = CUT) -> tuple[list[Entry], str | None]:
    loaded = files.load(LIFE, cut)
    return [entry for entry in loaded.entries if entry[0] > cut], loaded.flaw


def test_what_is_written_comes_back(files: TailFiles) -> None:
    files.write(LIFE, CUT, ENTRIES, last=True)
    assert files.load(LIFE, CUT) == LoadedTail(ENTRIES)
    assert entries_and_flaw(files, cut=12) == (ENTRIES[3:], None)
    assert entries_and_flaw(files, cut=100) == ([], None)


def test_a_disk_without_room_is_told_with_the_name_of_the_file(files: TailFiles) -> None:
    """It may be the last line of a node that cannot start, and an operator has several disks."""
    for sequence in (1, 2):
        (files.path / f"{LIFE}-{sequence:06d}.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '.*/{LIFE}-000001\.new'"):
        files.write(LIFE, CUT, ENTRIES)
    with pytest.raises(OSError, match=rf"No space left on device: '.*/{LIFE}-000002\.new'"):
        files.create(LIFE, 2, 4096)


def test_the_entry_at_the_cut_comes_too_so_that_the_log_can_compare(files: TailFiles) -> None:
    files.write(LIFE, CUT, ENTRIES, last=True)
    assert files.load(LIFE, 12).entries == ENTRIES[2:]


def test_a_tail_that_begins_behind_the_cut_lacks_something(files: TailFiles) -> None:
    files.write(LIFE, CUT, ENTRIES, last=True)
    entries, flaw = entries_and_flaw(files, cut=CUT - 1)
    assert (entries, flaw is not None) == ([], True)


def test_only_the_life_that_is_asked_for_counts(files: TailFiles) -> None:
    files.write(LIFE + 1, CUT, ENTRIES, last=True)
    assert files.load(LIFE, CUT).flaw == "there is no tail of an earlier life"
    files.keep_only(LIFE)
    assert list(files.path.iterdir()) == []


def test_the_segment_that_the_thread_is_making_is_let_be(files: TailFiles) -> None:
    made, left_over = (files.path / f"{life}-000004.new" for life in (LIFE, LIFE - 1))
    made.write_bytes(b"")
    left_over.write_bytes(b"")
    files.keep_only(LIFE)
    assert list(files.path.iterdir()) == [made]


def test_a_file_where_the_directory_belongs_is_set_aside(directory: DataDirectory) -> None:
    directory.tail_path.write_bytes(b"of another version")
    files = TailFiles(directory)
    files.write(LIFE, CUT, ENTRIES, last=True)
    assert files.load(LIFE, CUT).flaw is None
    assert [path.read_bytes() for path in directory.path.glob("tail.unused-*")] == [
        b"of another version"
    ]


class TestWhatAKillLeaves:
    def test_records_count_up_to_the_end_mark(self, files: TailFiles) -> None:
        segment(files, 1, START, *RECORDS)
        assert entries_and_flaw(files) == (ENTRIES, None)

    def test_a_record_is_only_there_as_a_whole(self, files: TailFiles) -> None:
        """Killed while a record was copied, or between its last byte and the move of the end."""
        path = segment(files, 1, START, *RECORDS[:3])
        before = path.read_bytes()
        record = encoded(RECORDS[3], seed(LIFE, 1))
        at = before.index(bytes(400))
        for copied in range(len(record) + 1):
            torn = before[:at] + record[:copied] + before[at + copied :]
            path.write_bytes(torn)
            expected = ENTRIES[:3] if copied < len(record) else ENTRIES[:4]
            assert entries_and_flaw(files) == (expected, None), copied

    def test_a_truncation_takes_back_what_stood_there(self, files: TailFiles) -> None:
        other = [Record(Kind.ENTRY, index, 9, b"other") for index in (12, 13)]
        segment(files, 1, START, *RECORDS, Record(Kind.TRUNCATED, 12, 0), *other)
        new: list[Entry] = [(12, 9, b"other"), (13, 9, b"other")]
        assert entries_and_flaw(files) == ([*ENTRIES[:2], *new], None)

    def test_a_truncation_below_the_start_moves_it(self, files: TailFiles) -> None:
        new = Record(Kind.ENTRY, 8, 9, b"new")
        segment(files, 1, START, *RECORDS, Record(Kind.TRUNCATED, 8, 0), new)
        assert entries_and_flaw(files, cut=7) == ([(8, 9, b"new")], None)

    def test_segments_that_the_disk_has_passed_may_be_gone(self, files: TailFiles) -> None:
        segment(files, 3, *RECORDS[2:4], state=CLOSED)
        segment(files, 4, *RECORDS[4:])
        assert entries_and_flaw(files, cut=11) == (ENTRIES[2:], None)
        assert entries_and_flaw(files, cut=10)[1] is not None

    def test_an_empty_segment_was_made_ahead(self, files: TailFiles) -> None:
        segment(files, 1, START, *RECORDS, state=CLOSED)
        segment(files, 2)
        segment(files, 3)
        (files.path / f"{LIFE}-000004.new").write_bytes(b"half made")
        assert entries_and_flaw(files) == (ENTRIES, None)

    def test_a_restarted_log_is_whole_when_the_disk_reaches_its_start(
        self, files: TailFiles
    ) -> None:
        later = Record(Kind.ENTRY, 21, 5, b"later")
        segment(files, 1, START, *RECORDS, Record(Kind.START, 20, 0), later)
        assert entries_and_flaw(files, cut=20) == ([(21, 5, b"later")], None)
        entries, flaw = entries_and_flaw(files, cut=12)
        assert entries == ENTRIES[3:], "better than nothing where all have forgotten"
        assert flaw is not None and "12" in flaw

    def test_a_gap_is_closed_by_a_start_that_the_disk_reaches(self, files: TailFiles) -> None:
        segment(files, 1, START, *RECORDS, state=GAP)
        segment(files, 2)
        assert entries_and_flaw(files) == (ENTRIES, "the disk was too slow for the tail")
        segment(files, 2, Record(Kind.START, 30, 0), Record(Kind.ENTRY, 31, 5, b"x"))
        assert entries_and_flaw(files)[1] is not None
        assert entries_and_flaw(files, cut=30) == ([(31, 5, b"x")], None)


class TestDamage:
    def test_a_file_cut_anywhere_in_the_last_three_records_is_damaged(
        self, files: TailFiles
    ) -> None:
        path = segment(files, 1, START, *RECORDS, room=0)
        whole = path.read_bytes()
        three = sum(len(encoded(record, 0)) for record in RECORDS[-3:])
        for size in range(len(whole) - three, len(whole)):
            path.write_bytes(whole[:size])
            entries, flaw = entries_and_flaw(files)
            assert flaw is not None and str(path) in flaw, size
            assert entries == ENTRIES[: len(entries)]
            assert 3 <= len(entries) < len(ENTRIES)

    def test_a_flipped_bit_never_makes_a_shorter_history_of_it(self, files: TailFiles) -> None:
        path = segment(files, 1, START, *RECORDS)
        whole = path.read_bytes()
        for at in range(len(whole) - 500):
            for bit in range(8):
                flipped = bytes([whole[at] ^ (1 << bit)])
                path.write_bytes(whole[:at] + flipped + whole[at + 1 :])
                entries, flaw = entries_and_flaw(files)
                assert flaw is not None or entries == ENTRIES, (at, bit)
                assert entries == ENTRIES[: len(entries)], (at, bit)

    def test_an_end_mark_that_went_back_is_noticed(self, files: TailFiles) -> None:
        path = segment(files, 1, START, *RECORDS)
        content = bytearray(path.read_bytes())
        for kept in range(len(RECORDS) - 1):
            end = RECORDS_AT + sum(len(encoded(one, 0)) for one in (START, *RECORDS[:kept]))
            content[END_AT : END_AT + 8] = WORD.pack(end)
            path.write_bytes(content)
            assert entries_and_flaw(files)[1] is not None, kept

    @pytest.mark.parametrize("state", [1, CLOSED ^ 1, GAP | 1 << 60])
    def test_a_state_that_nobody_wrote_is_damage(self, files: TailFiles, state: int) -> None:
        path = segment(files, 1, START, *RECORDS)
        content = bytearray(path.read_bytes())
        content[STATE_AT : STATE_AT + 8] = WORD.pack(state)
        path.write_bytes(content)
        assert entries_and_flaw(files)[1] is not None

    def test_a_missing_or_a_foreign_segment_is_noticed(self, files: TailFiles) -> None:
        paths = [
            segment(files, 1, START, *RECORDS[:2], state=CLOSED),
            segment(files, 2, *RECORDS[2:4], state=CLOSED),
            segment(files, 3, *RECORDS[4:]),
        ]
        contents = [path.read_bytes() for path in paths]
        assert entries_and_flaw(files) == (ENTRIES, None)
        for gone in range(3):
            paths[gone].unlink()
            assert entries_and_flaw(files)[1] is not None, gone
            paths[gone].write_bytes(contents[gone])
        paths[2].write_bytes(contents[1])
        assert entries_and_flaw(files)[1] is not None

    def test_a_segment_that_was_not_full_is_not_gone_on_from(self, files: TailFiles) -> None:
        segment(files, 1, START, *RECORDS[:2])
        segment(files, 2, *RECORDS[2:])
        entries, flaw = entries_and_flaw(files)
        assert (entries, flaw is not None) == (ENTRIES[:2], True)

    def test_a_gap_in_the_indexes_is_damage(self, files: TailFiles) -> None:
        segment(files, 1, START, RECORDS[0], RECORDS[2])
        entries, flaw = entries_and_flaw(files)
        assert entries == ENTRIES[:1]
        assert flaw is not None and "holds entry 12 where 11 belongs" in flaw

    def test_a_damaged_file_is_kept_under_another_name(self, files: TailFiles) -> None:
        path = segment(files, 1, START, *RECORDS)
        path.write_bytes(path.read_bytes()[:200])
        damaged = files.load(LIFE, CUT).damaged
        assert damaged == path
        files.keep_only(LIFE + 1, damaged)
        assert [one.name.split(".damaged-")[0] for one in files.path.iterdir()] == [path.name]

    def test_the_format_of_a_newer_version_is_refused(
        self, files: TailFiles, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tail_format, "FORMAT", 2)
        files.write(LIFE, CUT, ENTRIES, last=True)
        monkeypatch.undo()
        with pytest.raises(OtherFormat, match="format 2"):
            files.load(LIFE, CUT)
