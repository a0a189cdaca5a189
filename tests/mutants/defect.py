"""One planted defect: a change of the source that breaks one rule, and the tests that must notice.

A defect is the exact text that is replaced. It has to stand in its file exactly once, so that a
defect that has gone stale with the code around it fails loudly instead of changing nothing.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


class Stale(Exception):
    """The defect does not fit the source any more; the text says how."""


@dataclass(frozen=True)
class Defect:
    """A defect: `old` in `file` (below `node/`) becomes `new`.

    `rule` is the rule that it breaks. `tests` (below `tests/`, as pytest names them) are the
    narrowest ones that find it.
    """

    name: str
    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, node: Path) -> str:
        """The source of the file with the defect in it. Raises `Stale`."""
        source = (node / self.file).read_text()
        count = source.count(self.old)
        if count != 1:
            raise Stale(f"{self.name}: its old text stands {count} times in node/{self.file}")
        changed = source.replace(self.old, self.new)
        try:
            is_same = _meaning(source) == _meaning(changed)
        except SyntaxError as error:
            raise Stale(f"{self.name}: node/{self.file} would be no Python: {error}") from error
        if is_same:
            raise Stale(f"{self.name}: changes nothing in node/{self.file}")
        return changed

    def check_tests(self, tests: Path) -> None:
        """Raise `Stale` unless the named tests are there."""
        for test in self.tests:
            path, *names = test.split("[", 1)[0].split("::")
            if not (tests / path).is_file():
                raise Stale(f"{self.name}: there is no tests/{path}")
            source = (tests / path).read_text()
            for name in names:
                if f"def {name}(" not in source and f"class {name}:" not in source:
                    raise Stale(f"{self.name}: tests/{path} has no {name}")


@lru_cache(maxsize=16)  # one file after the other has many defects
def _meaning(source: str) -> str:
    """What a program is, whatever its comments and its layout. Raises `SyntaxError`."""
    return ast.dump(ast.parse(source))
