"""The machine and the versions behind a set of figures, and what the machine says of a process."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = ("pysyncobj", "aiohttp", "cbor2", "msgspec", "uvloop")
_ASK_LIMIT_S = 10


def describe() -> str:
    """Return a few lines: processor, memory, kernel, Python, packages, tools."""
    packages = ", ".join(f"{name} {_package_version(name)}" for name in _PACKAGES)
    return "\n".join(
        (
            f"machine   {_processor()}, {os.cpu_count()} cores, {_memory_gib():.1f} GiB",
            f"system    {platform.system()} {platform.release()}",
            f"python    {platform.python_version()}{_built()}; {packages}",
            f"tools     wrk {tool_version('wrk', '-v')}; etcd {tool_version('etcd', '--version')}",
        )
    )


def _built() -> str:
    """How the interpreter was made, where it says so: it makes a difference of a sixth."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    optimised = "--enable-optimizations" in options or "-fprofile-use" in options
    return f" of {Path(sys.executable).resolve()}, " + (
        "profile-guided" if optimised else "not known to be profile-guided"
    )


def tool_version(tool: str, option: str) -> str:
    """Return the first line that mentions a version, or `missing`."""
    if shutil.which(tool) is None:
        return "missing"
    done = subprocess.run([tool, option], capture_output=True, text=True, timeout=_ASK_LIMIT_S)
    line = (done.stdout + done.stderr).strip().splitlines()[0]
    return line.partition(" [")[0].removeprefix(f"{tool} ").removeprefix("Version: ")


def resident_bytes(pid: int) -> int:
    """Return what the process holds in memory now (VmRSS), in bytes."""
    return _kib_of(Path(f"/proc/{pid}/status").read_text(), "VmRSS") * 1024


def processor_s(pid: int) -> float:
    """Return the seconds of processor time that the process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stored_bytes(directory: Path) -> int:
    """Return the bytes of all files below the directory."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


class Neighbours:
    """How much of the processors others took while we measured.

    What all processes used, less what this one and its children did. A child counts once it was
    waited for, so ask when the nodes have been stopped.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._foreign_s = _busy_s() - _own_s()

    def cores(self) -> float:
        """Return the average number of cores that others used since this was made."""
        elapsed = time.monotonic() - self._since
        return max(0.0, (_busy_s() - _own_s() - self._foreign_s) / elapsed)


def _busy_s() -> float:
    """Return the seconds that all cores together were busy, or taken by the machine's host."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return _kib_of(Path("/proc/meminfo").read_text(), "MemTotal") / 2**20


def _kib_of(text: str, name: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return int(line.split()[1])


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
