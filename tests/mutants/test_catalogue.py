"""The planted defects still fit the source; whether tests find them is for `scripts/mutate`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.catalogue import DEFECTS
from tests.mutants.defect import Defect, Stale
from tests.mutants.runner import PROJECT


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_fits_the_source_and_its_tests_are_there(defect: Defect) -> None:
    assert defect.tests
    defect.planted(PROJECT / "node")
    defect.check_tests(PROJECT / "tests")


def test_no_two_defects_have_one_name() -> None:
    assert [name for name, times in Counter(one.name for one in DEFECTS).items() if times > 1] == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("x = 3", "x = 4", "stands 0 times"),
        ("x", "y", "stands 2 times"),
        ("x = 1", "x = (", "no Python"),
        ("x = 1", "x = 1  # the same", "changes nothing"),
    ],
)
def test_a_defect_that_does_not_fit_is_told(tmp_path: Path, old: str, new: str, why: str) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx + 2\n")
    with pytest.raises(Stale, match=why):
        Defect("d", "r", "a.py", old, new, ("t.py",)).planted(tmp_path)


@pytest.mark.parametrize("test", ["gone.py", "t.py::test_gone", "t.py::TestGone::test_here"])
def test_a_defect_whose_test_is_gone_is_told(tmp_path: Path, test: str) -> None:
    (tmp_path / "t.py").write_text("def test_here(): ...\n")
    with pytest.raises(Stale, match=r"there is no|has no"):
        Defect("d", "r", "a.py", "x", "y", (test,)).check_tests(tmp_path)
