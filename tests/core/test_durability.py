"""What a store says of durability: set when it is made, changed later, gone with the store."""

from __future__ import annotations

from node.core import commands
from node.core.outcomes import StoreCreated
from node.core.state import State
from tests.core.observed import started


def apply(state: State, *encoded: bytes) -> list[object]:
    return list(state.apply(state.applied_index + 1, 1, encoded))


def test_a_store_is_made_with_a_durability_or_without() -> None:
    state = State()
    made = apply(
        state, commands.put_store("a", 1, commands.PERSISTED), commands.create_store("b", 1)
    )
    assert made == [StoreCreated(True), StoreCreated(True)]
    assert state.stores["a"].durability == commands.PERSISTED
    assert state.stores["b"].durability == commands.BY_NODE


def test_a_store_that_is_there_only_changes_its_durability() -> None:
    state = started("main")
    before = state.stores["main"]
    told: list[str] = []
    state.on_change = told.append
    for durability in (commands.PERSISTED, commands.PERSISTED, commands.BY_NODE):
        assert apply(state, commands.put_store("main", 9, durability)) == [StoreCreated(False)]
        assert state.stores["main"].durability == durability
    assert state.stores["main"] is before
    assert told == ["main", "main"], "the same once more is no change"


def test_making_a_store_that_is_there_leaves_its_durability() -> None:
    state = started("main")
    apply(state, commands.put_store("main", 1, commands.PERSISTED))
    apply(state, commands.create_store("main", 1))
    assert state.stores["main"].durability == commands.PERSISTED


def test_a_store_made_anew_knows_nothing_of_the_earlier_one() -> None:
    state = started("main")
    apply(state, commands.put_store("main", 1, commands.PERSISTED))
    apply(state, commands.delete_store("main"), commands.create_store("main", 1))
    assert state.stores["main"].durability == commands.BY_NODE
