"""Real disks for real nodes: small ext4 file systems that can fail, fill up or stand still."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest


class Disk:
    """An ext4 file system in a file, mounted at `path`."""

    def __init__(self, image: Path, path: Path, mib: int = 64) -> None:
        self.path = path
        self._image = image
        self._frozen = False
        with image.open("wb") as file:
            file.truncate(mib << 20)
        _run("mkfs.ext4", "-q", image)

    def mount(self, *options: str) -> None:
        _run(
            "mount", "-o", ",".join(("loop", "errors=remount-ro", *options)), self._image, self.path
        )

    def fail(self) -> None:
        """An error was found: from now on it is read-only."""
        source = _run("findmnt", "-no", "SOURCE", self.path).strip()
        Path(f"/sys/fs/ext4/{Path(source).name}/trigger_fs_error").write_text("x")

    def freeze(self) -> None:
        """Whoever writes to it from now on waits, and cannot even be killed."""
        _run("fsfreeze", "-f", self.path)
        self._frozen = True

    def thaw(self) -> None:
        """Let those who wait go on, if it was frozen."""
        if self._frozen:
            self._frozen = False
            _run("fsfreeze", "-u", self.path)

    def fill(self) -> None:
        """Take all the room there is."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def repair(self) -> None:
        """What an operator does while the node is down."""
        self.unmount()
        subprocess.run(["e2fsck", "-fy", self._image], check=False, capture_output=True, timeout=20)
        self.mount()

    def unmount(self, *options: str) -> None:
        self.thaw()
        _run("umount", *options, self.path)


def mounted(image: Path, path: Path, mib: int = 64) -> Disk:
    """A new disk at `path`; skips the test where file systems cannot be mounted."""
    path.mkdir(parents=True)
    try:
        disk = Disk(image, path, mib)
        disk.mount()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    return disk


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True)
    return done.stdout
