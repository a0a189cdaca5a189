"""Defects in what a disk holds and what a start reads back (I13, I15)."""

from __future__ import annotations

from tests.mutants.defect import Defect

_CRASH = "persistence/test_crash.py"
_LOADER = "persistence/test_loader.py"
_WORKER = "persistence/test_worker.py"
_SERVICE = "test_service.py"

DEFECTS = (
    Defect(
        "cut-moves-past-a-failed-store",
        "the cut moves only after every store file",
        "persistence/database.py",
        "        if plan.whole and not result.errors:\n",
        "        if plan.whole:\n",
        (_WORKER,),
    ),
    Defect(
        "cut-moves-past-a-store-left-out",
        "the cut moves only after every store file",
        "persistence/database.py",
        "        if plan.whole and not result.errors:\n",
        "        if not result.errors:\n",
        (_WORKER,),
    ),
    Defect(
        "cut-moves-before-the-stores",
        "the cut moves only after every store file",
        "persistence/database.py",
        "        for cut in plan.stores:\n            self._write(cut, plan.cut, result)\n"
        "        if plan.whole and not result.errors:\n"
        "            self._move_cut(plan.cut, result)\n",
        "        if plan.whole:\n"
        "            self._move_cut(plan.cut, result)\n"
        "        for cut in plan.stores:\n            self._write(cut, plan.cut, result)\n",
        (_CRASH, _WORKER),
    ),
    Defect(
        "no-rollback-of-events",
        "a start rolls every store back to the cut",
        "persistence/store_file.py",
        '        execute("DELETE FROM events WHERE position > ?", (mark.position,))\n',
        "",
        (_CRASH,),
    ),
    Defect(
        "no-rollback-of-streams",
        "a start rolls every store back to the cut",
        "persistence/store_file.py",
        '        execute("DELETE FROM streams WHERE stream_id >= ?", (mark.streams,))\n',
        "",
        (_CRASH,),
    ),
    Defect(
        "no-rollback-of-checkpoints",
        "a start rolls every store back to the cut",
        "persistence/store_file.py",
        '        execute("DELETE FROM checkpoints WHERE raft_index > ?", (raft_index,))\n',
        "",
        (_CRASH,),
    ),
    Defect(
        "old-mark-deleted-too-early",
        "the mark that the cut refers to is kept",
        "persistence/store_file.py",
        '            " (SELECT max(raft_index) FROM cuts WHERE raft_index <= ?)",\n'
        "            (safe_index,),\n",
        '            " (SELECT max(raft_index) FROM cuts WHERE raft_index <= ?)",\n'
        "            (mark.raft_index,),\n",
        (_CRASH,),
    ),
    Defect(
        "old-checkpoint-deleted-too-early",
        "the checkpoint that the cut refers to is kept",
        "persistence/store_file.py",
        "                (move.name, safe_index),\n",
        "                (move.name, move.raft_index),\n",
        (_CRASH,),
    ),
    Defect(
        "failed-transaction-is-trusted",
        "after a failed transaction the file is opened again",
        "persistence/database.py",
        "            self._close_file(store.uid)\n            result.errors[",
        "            result.errors[",
        (_WORKER,),
    ),
    Defect(
        "failed-cut-is-trusted",
        "after a failed transaction the file is opened again",
        "persistence/database.py",
        "        except _FAILURES as error:\n"
        "            self._close_node()\n"
        "            result.node_error",
        "        except _FAILURES as error:\n            result.node_error",
        (_CRASH,),
    ),
    Defect(
        "contents-not-verified",
        "checksums: a flipped bit in an event is damage",
        "persistence/loader.py",
        "        if contents != file.mark.contents or store.position != file.mark.position:\n",
        "        if store.position != file.mark.position:\n",
        (_LOADER,),
    ),
    Defect(
        "cut-not-verified",
        "checksums: a flipped bit in the cut is damage",
        "persistence/node_file.py",
        "        if row_checksum(*row[:2]) != row[2]:\n",
        "        if row is None:\n",
        (_LOADER,),
    ),
    Defect(
        "store-entry-not-verified",
        "checksums: a flipped bit in the list of stores is damage",
        "persistence/node_file.py",
        "            if _checksum(entry) != row[6]:\n",
        "            if row[6] is None:\n",
        (_LOADER,),
    ),
    Defect(
        "mark-not-verified",
        "checksums: a flipped bit in a mark is damage",
        "persistence/store_file.py",
        "        if row_checksum(*row[:6]) != row[6]:\n",
        "        if row[6] is None:\n",
        (_LOADER,),
    ),
    Defect(
        "checkpoint-not-verified",
        "checksums: a flipped bit in a checkpoint is damage",
        "persistence/store_file.py",
        "            if row_checksum(name, raft_index, position) != checksum:\n",
        "            if checksum is None:\n",
        (_LOADER,),
    ),
    Defect(
        "missing-file-is-an-empty-store",
        "a file that the cut lists and that is gone is damage",
        "persistence/loader.py",
        '        raise StoreDamaged(path, "is missing")\n    store = ',
        "        return Store(entry.name, entry.uid, entry.created_us)\n    store = ",
        (_LOADER,),
    ),
    Defect(
        "damage-is-nothing-lost",
        "A10: who could not load what it had says so",
        "persistence/loader.py",
        "        loaded.lost = True\n",
        "",
        (_LOADER,),
    ),
    Defect(
        "stray-file-is-left-in-place",
        "a file that is not part of the cut is set aside",
        "persistence/loader.py",
        "    strays = [path for path in directory.store_files() if path not in listed]\n",
        "    strays = [path for path in directory.store_files() if path in ()]\n",
        (_LOADER,),
    ),
    Defect(
        "commit-without-fsync",
        "when COMMIT returns, the transaction is on the disk",
        "persistence/schema.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = OFF",
        ("persistence/test_schema.py",),
    ),
    Defect(
        "force-answers-for-a-failed-store",
        "a flush answers only for what is on disk",
        "persistence/worker.py",
        "            if self._ledger.covered(account.name) < index\n        ]\n        reason",
        "            if account.uid < 0\n        ]\n        reason",
        (_WORKER,),
    ),
    Defect(
        "force-answers-without-the-cut",
        "a flush answers only for what a restart gets back to",
        "persistence/worker.py",
        "        elif self._ledger.cut.raft_index < index:\n"
        "            reason = self._ledger.node_error\n",
        "",
        (_WORKER,),
    ),
    Defect(
        "force-joins-an-older-cycle",
        "a flush waits for a cycle whose cut covers it",
        "persistence/worker.py",
        "        if self._running is not None and self._running[0] >= index:\n",
        "        if self._running is not None:\n",
        (_WORKER,),
    ),
    Defect(
        "stop-with-a-failed-store-is-clean",
        "clean mark: only where everything is on disk",
        "persistence/worker.py",
        "        return not self._ledger.behind\n",
        "        return True\n",
        (_WORKER,),
    ),
    Defect(
        "second-process-in-one-directory",
        "one process a directory",
        "persistence/directory.py",
        "            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        ("persistence/test_directory.py::test_the_lock_is_given_back_when_it_is_closed",),
    ),
    Defect(
        "older-copy-of-the-state-file",
        "boot: of two whole copies of the state file the newer one counts",
        "persistence/state_file.py",
        "= max(whole, key=lambda found: found[0])",
        "= min(whole, key=lambda found: found[0])",
        ("persistence/test_state_file.py",),
    ),
    Defect(
        "damaged-state-file-is-a-new-node",
        "boot: promises that cannot be read stop the start",
        "persistence/state_file.py",
        "        if copies and not whole:\n",
        "        if not copies and whole:\n",
        ("persistence/test_state_file.py",),
    ),
    Defect(
        "unreadable-file-is-damage",
        "A10: a start that cannot load what the node has does not start",
        "persistence/schema.py",
        "    if system:\n",
        "    if error is None:\n",
        (_LOADER, _SERVICE),
    ),
    Defect(
        "failed-last-cycle-is-clean",
        "clean mark: only where everything is on disk",
        "service.py",
        "        if not (written and closed):\n",
        "        if not closed:\n",
        (_SERVICE,),
    ),
    Defect(
        "tail-still-being-written-is-clean",
        "clean mark: only where everything is on disk",
        "service.py",
        "        if not (written and closed):\n",
        "        if not written:\n",
        (_SERVICE,),
    ),
    Defect(
        "clean-before-the-node-is-silent",
        "clean mark: set when the node says nothing more",
        "service.py",
        "        await self._replica.stop()\n        written = await self._write_everything()\n",
        "        written = await self._write_everything()\n        await self._replica.stop()\n",
        (_SERVICE,),
    ),
)
