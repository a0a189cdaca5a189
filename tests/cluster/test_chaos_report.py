"""What a chaos run says of itself, and what its command line refuses."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from cluster.chaos import failover, report
from cluster.chaos.__main__ import main
from cluster.chaos.trial import Plan, Result
from cluster.chaos.watch import Sample


def result() -> Result:
    outcome = Result(Plan(minutes=1, seed=7))
    outcome.findings.events.update(acknowledged=90_000, unknown=10, unknown_stored=4, refused=3)
    outcome.faults.update({"cut off": 2, "one way": 1, "kill all": 1})
    outcome.processes["kill -9"] = 3
    for number, resident in enumerate((50, 70, 90)):
        sample = Sample(number * 60.0, number * 45_000, resident << 20)
        outcome.memory.samples.setdefault("n1", []).append(sample)
    return outcome


def shown(outcome: Result) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    report.show(outcome, console)
    return console.export_text()


def test_a_run_without_a_violation_says_so_last() -> None:
    text = shown(result())
    assert "90,000" in text and "seed 7" in text and "3, 3" in text
    assert text.rstrip().endswith("Nothing was broken.")
    assert "not flat" not in text


def test_each_violation_is_told_and_nothing_is_called_unbroken() -> None:
    outcome = result()
    outcome.violations.append("lost: 1, such as e7")
    assert "violation: lost: 1, such as e7" in shown(outcome)
    assert "Nothing was broken" not in shown(outcome)


def test_memory_that_grows_faster_than_what_is_stored_is_not_flat() -> None:
    outcome = result()
    outcome.memory.samples["n1"].append(Sample(240.0, 100_000, 500 << 20))
    assert "not flat" in shown(outcome)
    assert report.as_json(outcome)["memory"]["n1"]["flat"] is False


def test_the_report_is_json() -> None:
    told = json.loads(json.dumps(report.as_json(result())))
    assert told["ok"] and told["kills"] == 3 and told["partitions"] == 3 and told["lost"] == 0


@pytest.mark.parametrize(
    ("gaps_s", "elections", "met"),
    [([0.5, 2.4], 0, False), ([0.5, 0.6, 2.4], 0, True), ([0.5] * 9 + [2.6], 0, False),
     ([0.5], 1, False), ([], 0, True)],
)  # fmt: skip
def test_a_failover_is_good_if_median_worst_and_elections_are(
    gaps_s: list[float], elections: int, met: bool
) -> None:
    outcome = failover.Outcome(gaps_s, [1] * len(gaps_s), 60.0, 1_000, elections)
    assert failover.met(outcome) is met
    failover.show(outcome, Console(file=io.StringIO()))


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--nodes", "4"], ["--leader-kills", "-1"]])
def test_an_option_that_makes_no_sense_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 64
    assert capsys.readouterr().err.startswith("scripts/chaos: wrong_usage: ")
