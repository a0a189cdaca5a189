"""The set-up that every script begins with. `python3.11` is a stub here that installs nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = PROJECT / "scripts"

STUB = """#!/bin/bash
# Says what it was asked for; leaves programs given with -c to the real Python.
case "$1 $2" in
    "-c "*) exec "$STUB_REAL" "$@" ;;
    "-m venv")
        echo venv >> "$STUB_LOG"; echo "$0" >> "$STUB_LOG.made-with"
        mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip") echo "$*" >> "$STUB_LOG"; exit "${STUB_PIP_EXIT:-0}" ;;
    *) echo "$*" ;;
esac
"""

TOO_OLD = "#!/bin/bash\nexit 1\n"

SLOW = STUB.replace('"-c "*) exec', '"-c "*) PYTHONTRACEMALLOC=1 exec')
"""The real Python, but it remembers where each object was made: twice as slow."""

WITHOUT_ENSUREPIP = STUB.replace(
    '"$@"', "-c \"import sys; sys.modules['ensurepip'] = None; $2\"", 1
)
"""As Debian's Python without the package python3-venv."""

TOOLS = ("bash", "cat", "cmp", "cp", "dirname", "mkdir", "readlink")
"""What the scripts use besides Python. The rest of this machine, its Pythons too, is not seen."""


class Machine:
    """A machine with a stub for Python, and an environment that is not there yet."""

    def __init__(self, directory: Path, python: str = "python3.11") -> None:
        self.venv = directory / "venv"
        self.log = directory / "log"
        self.log.touch()
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.tools = directory / "tools"
        self.tools.mkdir()
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name) or name)
        for name in ("python3.11", "python3"):
            self.install(name, STUB if name == python else TOO_OLD)
        self.environ = {
            "PATH": f"{self.programs}:{self.tools}",
            "HOME": str(directory),
            "EX_ESDB_VENV": str(self.venv),
            "STUB_LOG": str(self.log),
            "STUB_REAL": sys.executable,
        }

    def install(self, name: str, text: str, directory: Path | None = None) -> None:
        """Put a program where it is found first, or into another directory of the path."""
        path = (directory or self.programs) / name
        path.write_text(text)
        path.chmod(0o755)

    def begin(self, script: str, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPTS / script), *argv],
            cwd="/", env=self.environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, script: str, *argv: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.begin(script, *argv)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    @property
    def made_with(self) -> list[str]:
        """The Pythons that made the environment."""
        return Path(f"{self.log}.made-with").read_text().splitlines()

    @property
    def installations(self) -> list[str]:
        return [line.split()[-1] for line in self.log.read_text().splitlines() if "pip" in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_first_use_sets_up_and_the_next_ones_do_not(machine: Machine) -> None:
    code, out, err = machine.run("status", "--json")
    assert (code, out) == (0, "-m cluster.status --json\n")
    assert err.startswith(f"Setting up {machine.venv}")
    assert machine.run("flush") == (0, "-m cluster.flush\n", "")
    assert machine.installations == [str(SCRIPTS / "requirements.txt")]


def test_a_link_to_a_script_is_as_good_as_the_script(machine: Machine, tmp_path: Path) -> None:
    (link := tmp_path / "elsewhere").symlink_to(SCRIPTS / "exesdb")
    (further := tmp_path / "further").symlink_to(link.name)
    assert machine.run(str(further), "read")[:2] == (0, "-m cluster read\n")


def test_only_what_the_lock_file_names_is_installed(machine: Machine) -> None:
    machine.run("status")
    assert "--require-hashes -r" in machine.log.read_text()


def test_a_changed_lock_file_is_installed_again_into_the_same_place(machine: Machine) -> None:
    machine.run("status")
    (machine.venv / "installed-run.txt").write_text("another version")
    machine.run("status")
    assert len(machine.installations) == 2
    assert machine.log.read_text().count("venv\n") == 1


def test_the_tests_need_more_and_what_runs_is_part_of_it(machine: Machine) -> None:
    assert machine.run("test", "--all", "-k", "x")[:2] == (0, "-m pytest -k x\n")
    machine.run("status")
    assert machine.installations == [str(SCRIPTS / "requirements-dev.txt")]


def test_all_fast_tests_are_shared_out_and_those_of_a_file_are_not(machine: Machine) -> None:
    fast = "-m pytest -m not slow and not e2e"
    workers = "-n 4 --dist=worksteal"
    assert machine.run("test")[1] == f"{fast} {workers}\n"
    assert machine.run("test", "-n", "0")[1] == f"{fast} {workers} -n 0\n"
    for named in ("tests/test_config.py", "tests/test_config.py::test_x[a::b]", "tests/raft"):
        assert machine.run("test", "-k", "x", named)[1] == f"{fast} -k x {named}\n"


def test_two_set_ups_at_once_are_one(machine: Machine) -> None:
    both = [machine.begin("status"), machine.begin("flush")]
    for process in both:
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and out.startswith("-m cluster.")
    assert len(machine.installations) == 1


def test_a_set_up_that_failed_says_so_and_is_done_again(machine: Machine) -> None:
    machine.environ["STUB_PIP_EXIT"] = "1"
    code, out, err = machine.run("status")
    assert (code, out) == (3, "") and "could not be installed" in err
    machine.environ["STUB_PIP_EXIT"] = "0"
    assert machine.run("status")[0] == 0


def test_another_python_will_do_if_it_is_new_enough(tmp_path: Path) -> None:
    assert Machine(tmp_path, "python3").run("status")[0] == 0


def test_without_a_python_that_is_new_enough_the_script_says_what_is_missing(
    machine: Machine,
) -> None:
    machine.install("python3.11", TOO_OLD)
    code, out, err = machine.run("status")
    assert (code, out) == (3, "") and "Python 3.11 or newer is needed" in err


def test_of_two_pythons_the_faster_one_is_taken(machine: Machine) -> None:
    machine.install("python3.11", SLOW)
    machine.install("python3.11", STUB, machine.tools)
    assert machine.run("status")[0] == 0
    assert machine.made_with == [str(machine.tools / "python3.11")]


def test_the_first_one_is_taken_when_no_other_is_faster(machine: Machine) -> None:
    machine.install("python3.11", SLOW, machine.tools)
    assert machine.run("status")[0] == 0
    assert machine.made_with == [str(machine.programs / "python3.11")]


def test_a_python_that_cannot_make_environments_is_the_last_choice(machine: Machine) -> None:
    machine.install("python3.11", WITHOUT_ENSUREPIP)
    machine.install("python3.11", SLOW, machine.tools)
    assert machine.run("status")[0] == 0
    assert machine.made_with == [str(machine.tools / "python3.11")]


@pytest.mark.parametrize("name", ["test", "lock"])
def test_help_of_the_scripts_for_developers_needs_no_set_up(machine: Machine, name: str) -> None:
    code, out, err = machine.run(name, "--help")
    assert code == 0 and out.startswith(f"usage: scripts/{name}") and err == ""
    assert machine.log.read_text() == ""


@pytest.mark.parametrize("path", sorted(path for path in SCRIPTS.iterdir() if not path.suffix))
def test_every_script_is_sound_bash_and_can_be_run(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
    assert path.name == "environment" or os.access(path, os.X_OK)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_locked_package_has_a_version_and_hashes(name: str) -> None:
    text = (SCRIPTS / name).read_text().replace("\\\n", "")
    packages = [line for line in text.splitlines() if line and line.lstrip()[0] != "#"]
    assert packages and all("==" in line and "--hash=sha256:" in line for line in packages)
    assert "pysyncobj==0.3.17" in text
