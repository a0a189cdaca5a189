"""Defects in snapshots of aggregates: what is kept, what the disk and a filled node get of them."""

from __future__ import annotations

from tests.mutants.defect import Defect

_CORE = "core/test_snapshots.py"
_DISK = "persistence/test_snapshots.py"
_CRASH = "persistence/test_crash.py"
_TRANSFER = "raft/test_fill_transfer.py"

DEFECTS = (
    Defect(
        "snapshot-that-goes-at-once-is-acknowledged",
        "I16: what is acknowledged is there",
        "core/snapshots.py",
        "return falling if version == series.versions[-1] == new.version else None",
        "return falling",
        (_CORE,),
    ),
    Defect(
        "replaced-snapshot-stays-in-the-digest",
        "equal snapshots have equal digests",
        "core/snapshots.py",
        "        self.digest = (self.digest - _digest(snapshot)) % _DIGESTS\n",
        "        self.digest = self.digest % _DIGESTS\n",
        (_CORE,),
    ),
    Defect(
        "fewer-to-keep-counts-later",
        "a smaller number to keep counts at once, on all nodes",
        "core/snapshots.py",
        "        self.kept = kept\n        self.drop_surplus(index)\n",
        "        self.kept = kept\n",
        (_CORE,),
    ),
    Defect(
        "any-number-of-snapshots-goes-at-once",
        "no command takes longer than some milliseconds",
        "core/snapshots.py",
        "while self._surplus and dropped < DROPPED_MAX and",
        "while self._surplus and",
        (_CORE,),
    ),
    Defect(
        "large-snapshots-go-at-once",
        "no command takes longer than some milliseconds",
        "core/snapshots.py",
        "dropped < DROPPED_MAX and size < DROPPED_BYTES_MAX:",
        "dropped < DROPPED_MAX:",
        (_CORE,),
    ),
    Defect(
        "surplus-of-snapshots-stays",
        "the leader's clock lets go of what one command has left",
        "core/store.py",
        " or self.snapshots.has_surplus\n",
        "\n",
        ("raft/test_retention.py",),
    ),
    Defect(
        "loaded-surplus-stays",
        "determinism: a node that was loaded goes on like the others",
        "core/snapshots.py",
        "            self._surplus.add(key)\n",
        "            pass\n",
        (_DISK,),
    ),
    Defect(
        "forgotten-ends-are-none",
        "the disk is told what went, or that this is not known",
        "core/snapshots.py",
        "            self._gone_known_after = index\n",
        "            pass\n",
        (_CORE, _DISK),
    ),
    Defect(
        "deleted-snapshots-come-back",
        "I13: a file rolled back to its mark is what was there",
        "persistence/snapshot_rows.py",
        "gone_index = NULL WHERE gone_index > ?",
        "gone_index = NULL WHERE gone_index >= ?",
        (_DISK,),
    ),
    Defect(
        "snapshots-are-not-rolled-back",
        "I13: a file rolled back to its mark is what was there",
        "persistence/store_file.py",
        "        snapshot_rows.roll_back(self._connection, raft_index)\n",
        "",
        (_CRASH,),
    ),
    Defect(
        "gone-rows-leave-too-soon",
        "I13: what a certain cut still has stays in the file",
        "persistence/snapshot_rows.py",
        '    connection.execute("DELETE FROM snapshots WHERE gone_index <= ?", (safe_index,))\n',
        '    connection.execute("DELETE FROM snapshots WHERE gone_index <= ?", (raft_index,))\n',
        (_CRASH, _DISK),
    ),
    Defect(
        "snapshots-from-the-disk-not-compared",
        "I13: what is read is what was written",
        "persistence/loader.py",
        "        snapshots=store.snapshots.digest,\n",
        "        snapshots=file.mark.contents.snapshots,\n",
        (_DISK,),
    ),
    Defect(
        "changed-snapshots-are-no-change",
        "a store with new snapshots is pending",
        "persistence/ledger.py",
        "    if store.snapshots.changed_index > account.moves_after:\n",
        "    if store.snapshots.changed_index < 0:\n",
        (_DISK,),
    ),
    Defect(
        "brought-snapshots-not-verified",
        "A3: what arrives is compared with its digest",
        "raft/fill_snapshots.py",
        "    return made if fits(made, wanted) else None\n",
        "    return made\n",
        (_TRANSFER,),
    ),
    Defect(
        "own-snapshots-change-before-the-fill-is-installed",
        "I13: what a fill installs is the state at its index",
        "raft/fill_receiver.py",
        "            not fill_snapshots.fits(one, offered.snapshots)\n            or ",
        "            ",
        (_TRANSFER,),
    ),
    Defect(
        "filled-snapshots-are-not-new-to-the-disk",
        "what a fill brought is compared with the file",
        "raft/fill_receiver.py",
        "                snapshots.replaces(filled.raft_index)\n",
        "",
        (_TRANSFER,),
    ),
)
