"""What a node knows of itself when it starts again."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.identity import EXIT_PROMISE_LOST, Identity, WrongDirectory
from node.persistence.directory import DataDirectory
from node.persistence.state_file import StateFile
from node.raft.lineage import Standing
from node.raft.membership import Member, Membership
from node.raft.session import INCARNATION_BITS

MEMBERS = ("n1", "n2", "n3")


@contextmanager
def life(path: Path, node_id: str = "n1") -> Iterator[Identity]:
    """One life of a node on a directory; it ends as a crash does, unless it leaves."""
    with DataDirectory(path) as directory:
        yield Identity(directory, node_id, MEMBERS)


def no_room(path: Path, _: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def forgetful(identity: Identity) -> bool:
    return identity.starting_point(0, 0, damaged=False).forgetful


def test_only_a_clean_stop_of_a_node_that_had_recovered_is_trusted(tmp_path: Path) -> None:
    with life(tmp_path) as first:
        assert forgetful(first), "a node without a state file is new, or has lost everything"
        first.recovered()
        first.leave(0, [])
    with life(tmp_path) as second:
        assert not forgetful(second)
        second.begun(with_tail=False)
    with life(tmp_path) as third:
        assert forgetful(third), "the second life ended as in a crash"


def test_a_clean_stop_before_it_has_recovered_makes_no_voter_of_a_node(tmp_path: Path) -> None:
    """What it has forgotten it has still forgotten, however orderly it was stopped."""
    with life(tmp_path) as first:
        first.recovered()
    with life(tmp_path) as crashed:
        assert forgetful(crashed)
        crashed.leave(0, [])
    with life(tmp_path) as stopped:
        assert forgetful(stopped)
        stopped.recovered()
        stopped.leave(0, [])
    with life(tmp_path) as recovered:
        assert not forgetful(recovered)


def test_damage_found_once_is_not_forgotten_by_a_clean_stop(tmp_path: Path) -> None:
    with life(tmp_path) as first:
        first.recovered()
        first.leave(0, [])
    with life(tmp_path) as damaged:
        assert damaged.starting_point(0, 0, damaged=True).forgetful
        damaged.leave(0, [])
    with life(tmp_path) as after:
        assert forgetful(after)


TAIL = [(11, 2, b"a"), (12, 3, b"b")]


def left(path: Path) -> None:
    """A life that has recovered, and ends with a clean stop."""
    with life(path) as identity:
        identity.recovered()
        identity.save(3, "n2")
        identity.leave(10, TAIL)


def test_a_clean_stop_finds_its_promise_and_its_log_again(tmp_path: Path) -> None:
    left(tmp_path)
    with life(tmp_path) as identity:
        found = identity.starting_point(10, 2, damaged=False)
    assert (found.term, found.vote, found.tail) == (3, "n2", tuple(TAIL))
    assert not found.forgetful


def test_a_wiped_node_is_not_trusted_whatever_else_is_left(tmp_path: Path) -> None:
    left(tmp_path)
    for path in tmp_path.glob("state.*"):
        path.unlink()
    with life(tmp_path) as identity:
        assert forgetful(identity)


@pytest.mark.parametrize("harm", ["gone", "cut short"])
def test_without_its_whole_log_a_clean_stop_is_not_trusted(tmp_path: Path, harm: str) -> None:
    left(tmp_path)
    (tail,) = (tmp_path / "tail").iterdir()
    if harm == "gone":
        tail.unlink()
    else:
        tail.write_bytes(tail.read_bytes()[:-1])
    with life(tmp_path) as identity:
        assert forgetful(identity)


def test_a_blank_node_knows_in_which_lives_its_state_file_was_used(tmp_path: Path) -> None:
    """In one of them it may have been added, and knows since then what it promised."""
    lives: list[int] = []
    for _ in range(66):
        with life(tmp_path) as node:
            start = node.starting_point(0, 0, damaged=False)
            lives.append(start.incarnation)
            assert start.lives == tuple(lives[-64:])
    with life(tmp_path) as node:
        node.recovered()
    with life(tmp_path) as member:
        assert member.starting_point(0, 0, damaged=False).lives == ()


def test_a_node_without_a_state_file_is_blank_until_it_has_recovered(tmp_path: Path) -> None:
    with life(tmp_path) as first:
        assert first.starting_point(0, 0, damaged=False).blank
        first.save(7, "n2")
    with life(tmp_path) as crashed:
        assert crashed.starting_point(0, 0, damaged=False).blank, "a later term is no memory"
        crashed.leave(0, [])
    with life(tmp_path) as stopped:
        assert stopped.starting_point(0, 0, damaged=False).blank
        stopped.recovered()
    with life(tmp_path) as recovered:
        assert not recovered.starting_point(0, 0, damaged=False).blank


def test_a_log_that_cannot_be_written_leaves_no_clean_mark(tmp_path: Path) -> None:
    left(tmp_path)
    with life(tmp_path) as identity:
        incarnation = identity.starting_point(10, 2, damaged=False).incarnation
        identity.begun(with_tail=False)
        # Where the new log would be written.
        (tmp_path / "tail" / f"{incarnation}-000001.tail.new").mkdir()
        with pytest.raises(OSError, match="directory"):
            identity.leave(10, [*TAIL, (13, 3, b"c")])
    with life(tmp_path) as identity:
        assert forgetful(identity), "the log that it finds is one of an earlier stop"


def test_each_start_takes_a_later_incarnation_and_keeps_it_before_a_word_is_said(
    tmp_path: Path,
) -> None:
    seen = []
    for _ in range(3):
        with DataDirectory(tmp_path) as directory:
            identity = Identity(directory, "n1", MEMBERS)
            seen.append(identity.starting_point(0, 0, damaged=False).incarnation)
            kept = StateFile(directory).load()
            assert kept is not None
            assert (kept.incarnation, kept.clean) == (seen[-1], False)
    assert seen[0] < seen[1] < seen[2]


def test_a_promise_is_on_disk_when_it_has_been_made(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as directory:
        Identity(directory, "n1", MEMBERS).save(7, "n3")
        kept = StateFile(directory).load()
        assert kept is not None
        assert (kept.term, kept.vote) == (7, "n3")


def test_a_membership_that_need_not_be_kept_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", pytest.fail)
    one, two = (Membership(at, (Member("n1", f"a:{at}"),)) for at in (1, 2))
    with DataDirectory(tmp_path) as directory:
        identity = Identity(directory, "n1", MEMBERS)
        identity.try_membership(one, one, None)
        with monkeypatch.context() as full:
            full.setattr("node.persistence.state_file._replace", no_room)
            with pytest.raises(OSError, match="No space left"):
                identity.try_membership(one, two, None)
        identity.save(7, "n3")
    with life(tmp_path) as after:
        start = after.starting_point(0, 0, damaged=False)
        assert (start.term, start.membership, start.heard) == (7, one, one)


def test_a_promise_that_cannot_be_written_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    with life(tmp_path) as identity:
        (tmp_path / "state.1.spare").mkdir()
        with pytest.raises(SystemExit) as ended:
            identity.save(7, "n3")
    assert ended.value.code == EXIT_PROMISE_LOST


def test_founders_agree_on_a_lineage_without_a_word(tmp_path: Path) -> None:
    found = set()
    for node_id in MEMBERS:
        with life(tmp_path / node_id, node_id) as identity:
            found.add(identity.standing)
    assert found == {Standing(identity.cluster, (), founded=False)}


def test_a_lineage_is_founded_once_a_leader_of_it_was_seen(tmp_path: Path) -> None:
    with life(tmp_path) as first:
        first.recovered()
        assert first.standing.founded
    with life(tmp_path) as second:
        assert second.standing.founded


def test_a_start_with_a_clock_that_is_far_ahead_does_not_shut_a_node_out_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for year in (2026, 2150, 2026):
        moment_ns = (year - 1970) * 365 * 86_400 * 10**9
        monkeypatch.setattr("node.identity.time.time_ns", lambda moment_ns=moment_ns: moment_ns)
        with life(tmp_path) as identity:
            seen.append(identity.starting_point(0, 0, damaged=False).incarnation)
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]
    assert seen[-1] < 2**INCARNATION_BITS


def test_a_node_wiped_and_started_within_a_second_is_a_later_incarnation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_ns = itertools.count(1_700_000_000 * 10**9, 20 * 10**6)
    monkeypatch.setattr("node.identity.time.time_ns", lambda: next(clock_ns))
    incarnations = []
    for number in range(3):
        with life(tmp_path / str(number)) as identity:
            incarnations.append(identity.starting_point(0, 0, damaged=False).incarnation)
    assert incarnations == sorted(set(incarnations))


def test_a_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    with life(tmp_path):
        pass
    with pytest.raises(WrongDirectory, match="that of node n1; give"), life(tmp_path, "n2"):
        pass


def test_who_names_other_peers_is_told_how_members_change_and_not_to_take_a_new_directory(
    tmp_path: Path,
) -> None:
    """A fourth `--peer` on the command lines is how other systems grow."""
    with life(tmp_path):
        pass
    first_given = r"peers that it was first given .*scripts/member"
    with DataDirectory(tmp_path) as directory, pytest.raises(WrongDirectory, match=first_given):
        Identity(directory, "n1", (*MEMBERS, "n4"))


def test_a_new_node_is_not_said_to_miss_a_tail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with life(tmp_path) as first:
        forgetful(first)
        assert "is new, or was wiped" in caplog.text and "tail" not in caplog.text
    caplog.clear()
    with life(tmp_path) as second:
        second.starting_point(0, 0, damaged=True)
        assert "a database was damaged" in caplog.text


def test_a_node_is_alone_where_no_other_one_is_or_may_be_counted(tmp_path: Path) -> None:
    one = Membership(1, (Member("n1", "a:1"),))
    learning = one.with_learner(Member("n2", "b:1"))  # who may have nothing yet
    two = learning.with_learner_promoted()
    with life(tmp_path / "of three") as founder:
        assert not founder.is_alone
        founder.save_membership(one, one, None)
        assert founder.is_alone
    with DataDirectory(tmp_path / "alone") as directory:
        founder = Identity(directory, "n1", ["n1"])
        assert founder.is_alone
        founder.save_membership(one, learning, None)
        assert founder.is_alone
        founder.save_membership(learning, two, None)
        assert not founder.is_alone
    with DataDirectory(tmp_path / "joining") as directory:
        assert not Identity(directory, "n1", ["n1"], joins=True).is_alone


class TestQuarantine:
    NEWER = Standing("newer", ("older", "given-up"), founded=True)

    def test_its_data_are_moved_aside_at_the_next_start_and_never_deleted(
        self, tmp_path: Path
    ) -> None:
        with life(tmp_path) as given_up:
            lineage = given_up.standing.lineage
            given_up.recovered()
            given_up.save(7, "n2")
            (tmp_path / "node.db").write_text("the cut")
            (tmp_path / "stores" / "main.1.db").write_text("events")
            given_up.quarantine(self.NEWER)
            given_up.leave(8, [(9, 7, b"an entry")])
        with life(tmp_path) as stranger:
            assert forgetful(stranger)
            start = stranger.starting_point(0, 0, damaged=False)
            assert (start.term, start.vote, start.tail) == (0, None, ())
            assert stranger.standing == self.NEWER._replace(founded=False)
            assert stranger.quarantined is not None
            assert f"its lineage {lineage} was given up for newer" in stranger.quarantined
        [aside] = tmp_path.glob("quarantined-*")
        moved = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()}
        [tail] = (name for name in moved if name.startswith("tail/"))
        assert moved == {"node.db", "stores/main.1.db", tail}
        assert aside.name in stranger.quarantined
        assert list((tmp_path / "stores").iterdir()) == []

    def test_it_stays_quarantined_over_restarts_until_a_leader_has_filled_it(
        self, tmp_path: Path
    ) -> None:
        with life(tmp_path) as given_up:
            given_up.quarantine(self.NEWER)
        (tmp_path / "node.db").write_bytes(b"")
        for _ in range(2):
            with life(tmp_path) as stranger:
                assert stranger.quarantined is not None
        assert len(list(tmp_path.glob("quarantined-*"))) == 1, "once is enough"
        with life(tmp_path) as added:
            added.recovered()
            assert added.quarantined is None
            assert added.standing == self.NEWER

    def test_one_without_a_state_file_does_not_know_what_it_promised_in_the_newer_lineage(
        self, tmp_path: Path
    ) -> None:
        """It may have been a member there, and have lost its disk."""
        with life(tmp_path) as wiped:
            assert wiped.starting_point(0, 0, damaged=False).blank
            wiped.quarantine(self.NEWER)
        with life(tmp_path) as stranger:
            assert stranger.starting_point(0, 0, damaged=False).blank

    def test_nor_does_one_with_a_state_file_for_another_disk_may_have_been_used_since(
        self, tmp_path: Path
    ) -> None:
        with life(tmp_path) as member:
            member.recovered()
            member.quarantine(self.NEWER)
        with life(tmp_path) as stranger:
            start = stranger.starting_point(0, 0, damaged=False)
            assert start.blank and start.lives == (start.incarnation,)

    def test_until_the_restart_nothing_that_the_old_life_does_takes_it_back(
        self, tmp_path: Path
    ) -> None:
        """Its memory is still of the old lineage, in which it may just now recover or vote."""
        old = Membership(7, (Member("n1", "a:1"), Member("n2", "b:1")))
        with life(tmp_path) as given_up:
            (tmp_path / "node.db").write_text("the cut")
            given_up.quarantine(self.NEWER)
            given_up.recovered()
            given_up.save(9, "n2")
            given_up.save_membership(old, old, None)
            given_up.quarantine(Standing("newest", (), founded=True))
        with life(tmp_path) as stranger:
            assert stranger.standing == self.NEWER._replace(founded=False)
            start = stranger.starting_point(0, 0, damaged=False)
            assert (start.term, start.forgetful) == (0, True)
            assert start.membership is not None and start.membership.voters == ()
        assert not (tmp_path / "node.db").exists()

    def test_a_move_that_a_crash_cut_short_is_finished_at_the_next_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with life(tmp_path) as given_up:
            for name in ("node.db", "tail/1-000001.tail", "stores/main.1.db"):
                (tmp_path / name).write_text(name)
            given_up.quarantine(self.NEWER)
        rename, renamed = Path.rename, []

        def fail_at_the_second(path: Path, target: Path) -> Path:
            if target.parent.name.startswith("quarantined"):
                renamed.append(path)
                if len(renamed) == 2:
                    raise OSError("the lights went out")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fail_at_the_second)
        with pytest.raises(OSError, match="lights"), life(tmp_path):
            pass
        with life(tmp_path):
            pass
        moved = [path.read_text() for path in tmp_path.glob("quarantined-*/**/*") if path.is_file()]
        assert sorted(moved) == ["node.db", "stores/main.1.db", "tail/1-000001.tail"]


def test_an_operator_s_order_makes_a_new_lineage_in_which_nothing_is_proven_yet(
    tmp_path: Path,
) -> None:
    alone = Membership(1, (Member("n1", "a:1"),))
    with life(tmp_path) as survivor:
        parent = survivor.standing.lineage
        survivor.recovered()
        survivor.save(7, "n1")
        survivor.rebuild("one", alone)
        survivor.leave(8, [(9, 7, b"an entry")])
    with life(tmp_path) as rebuilt:
        assert rebuilt.standing == Standing("one", (parent,), founded=False)
        start = rebuilt.starting_point(8, 7, damaged=False)
        assert start.forgetful, "a cold start, though the stop was clean"
        assert (start.term, start.vote) == (7, "n1"), "promises outlive a lineage"
        assert start.tail == ((9, 7, b"an entry"),)
        assert start.membership == start.heard == alone
        rebuilt.recovered()
        assert rebuilt.standing.founded


def test_a_survivor_among_others_asks_them_what_it_promised(tmp_path: Path) -> None:
    """The order may have reached it before, and it may have voted, and lost its disk since."""
    two = Membership(1, (Member("n1", "a:1"), Member("n2", "b:1")))
    with life(tmp_path) as wiped:
        wiped.rebuild("one", two)
    with life(tmp_path) as wiped:
        assert forgetful(wiped) and wiped.starting_point(0, 0, damaged=False).blank


def test_a_survivor_that_lost_its_disk_has_promised_nothing_in_a_new_lineage(
    tmp_path: Path,
) -> None:
    """Simulated seed 952078: ordered to go on alone, it waited for those that it had forgotten."""
    with life(tmp_path) as wiped:
        assert wiped.starting_point(1, 0, damaged=False).blank
        wiped.rebuild("one", Membership(1, (Member("n1", "a:1"),)))
    with life(tmp_path) as rebuilt:
        start = rebuilt.starting_point(1, 0, damaged=False)
        assert start.forgetful and not start.blank
