"""What a run came to, for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.chaos.history import ACKNOWLEDGED, REFUSED, UNKNOWN
from cluster.chaos.trial import MEMORY_EVENT_BYTES, MEMORY_FIXED_BYTES, Result
from cluster.chaos.watch import Sample

PAUSE_TARGET_S = 5.0


def as_json(result: Result) -> dict[str, Any]:
    """Everything, in terms of JSON."""
    findings = result.findings
    return {
        "seed": result.plan.seed,
        "nodes": result.plan.nodes,
        "seconds": round(result.seconds, 1),
        "ok": not result.violations,
        "violations": result.violations,
        "examples": findings.examples,
        "events": dict(findings.events) | {"stored": findings.stored},
        "reads": dict(findings.reads),
        "deliveries": dict(result.shared.figures),
        "snapshots": dict(findings.snapshots),
        "removals": dict(findings.removals),
        "lost": findings.violations["lost"],
        "doubled": findings.violations["doubled"],
        "out_of_order": findings.violations["reordered"] + findings.violations["moved"],
        "kills": result.kills,
        "partitions": result.partitions,
        "faults": dict(result.faults),
        "processes": dict(result.processes),
        "logs": dict(result.told),
        "longest_pause_s": round(result.longest_pause_s, 2),
        "longest_pause_at_s": round(result.longest_pause_at_s, 1),
        "longest_silence_s": round(result.longest_silence_s, 1),
        "memory": {node_id: _memory(samples) for node_id, samples in _samples(result).items()},
        "full_disks_possible": result.disks,
    }


def show(result: Result, console: Console) -> None:
    """A table for people, the violations, and the verdict last."""
    report = as_json(result)
    findings, events = result.findings, report["events"]
    table = Table("what", "came out", show_header=False)
    rows = [
        ("run", f"{report['seconds']:.0f} s, seed {report['seed']}, {report['nodes']} nodes"),
        ("events acknowledged", f"{events.get(ACKNOWLEDGED, 0):,}"),
        ("unknown", f"{events.get(UNKNOWN, 0):,}, of which"
                    f" {events.get('unknown_stored', 0):,} are stored"),
        ("refused", f"{events.get(REFUSED, 0):,}"),
        ("stored in the end", f"{findings.stored:,}"),
        ("reads", _pairs(report["reads"])),
        ("deliveries", _pairs(report["deliveries"])),
        ("snapshots", _pairs(report["snapshots"])),
        ("removals", _pairs(report["removals"])),
        ("lost", f"{report['lost']}"),
        ("doubled", f"{report['doubled']}"),
        ("out of order", f"{report['out_of_order']}"),
        ("nodes that differ", f"{findings.violations['differing']}"),
        ("faults", _pairs(report["faults"])),
        ("processes", _pairs(report["processes"])),
        ("kills, partitions", f"{report['kills']}, {report['partitions']}"),
        ("the logs tell", _pairs(report["logs"])),
        ("longest pause", f"{report['longest_pause_s']:.1f} s without an acknowledgement while a"
                          f" majority was connected, at {report['longest_pause_at_s']:.0f} s"
                          f" (asked for: {PAUSE_TARGET_S:g})"),
        ("longest silence", f"{report['longest_silence_s']:.1f} s without an acknowledgement,"
                            " whoever was up"),
        *((f"memory of {node_id}", _memory_words(each))
          for node_id, each in report["memory"].items()),
    ]  # fmt: skip
    if not result.disks:
        rows.append(("left out", "full disks: mounting is not allowed here"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for violation in result.violations:
        console.print(f"[bold red]violation:[/] {violation}", highlight=False, soft_wrap=True)
    if not result.violations:
        console.print("[bold green]Nothing was broken.[/]")


def _pairs(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _samples(result: Result) -> dict[str, list[Sample]]:
    return {node_id: kept for node_id, kept in sorted(result.memory.samples.items()) if kept}


def _memory(samples: list[Sample]) -> dict[str, Any]:
    """Resident memory at the start, in the middle, at the end; flat if it grew with the events.

    The first sample is of a process that has just started, so the allowance is measured from it.
    """
    first, middle, last = samples[0], samples[len(samples) // 2], samples[-1]
    grown = last.resident_bytes - first.resident_bytes
    allowed = MEMORY_FIXED_BYTES + MEMORY_EVENT_BYTES * (last.events - first.events)
    return {
        "start_bytes": first.resident_bytes,
        "middle_bytes": middle.resident_bytes,
        "end_bytes": last.resident_bytes,
        "greatest_bytes": max(sample.resident_bytes for sample in samples),
        "bytes_an_event": round(grown / max(1, last.events - first.events)),
        "flat": grown <= allowed,
    }


def _memory_words(memory: dict[str, Any]) -> str:
    start, middle, end, greatest = (
        f"{memory[name] / 2**20:.0f}"
        for name in ("start_bytes", "middle_bytes", "end_bytes", "greatest_bytes")
    )
    return (
        ("" if memory["flat"] else "[bold red]not flat:[/] ")
        + f"{start} MiB at the start, {middle} in the middle, {end} at the end, {greatest} at most;"
        f" {memory['bytes_an_event']:,} bytes an event"
    )
