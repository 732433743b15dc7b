"""Tries the matrix's short part with the versions that are installed: `python -m tests.latest`.

Says which of them are not the tested ones of constraints.txt, and what broke. `make test-latest`
runs it in an environment that has the newest releases; a scheduled job runs that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from sailplan.imports import installed_versions

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
_SHORT_PART = ("tests/matrix", "-m", "not slow and not gpu", "--timeout", "900")
_SIDE_BY_SIDE = ("-n", "logical", "--maxprocesses", "2", "--dist", "loadfile")


def pinned() -> dict[str, str]:
    """Returns the version of each package that the tests were run with."""
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    return {name: version for name, _, version in (line.partition("==") for line in lines) if name}


def drift(tested: dict[str, str]) -> list[tuple[str, str, str]]:
    """Returns package, tested and installed version of each that is another one."""
    installed = installed_versions(tested)
    return [
        (name, version, here)
        for name, version in tested.items()
        if (here := installed[name]) not in (version, None)
    ]


def run_tests(arguments: Sequence[str]) -> tuple[int, list[tuple[str, str]]]:
    """Runs tests as a process of their own, which prints as it goes.

    Returns:
        pytest's exit code; of each test that failed or could not be set up its name, and the first
        line of why.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", *arguments, f"--junitxml={results}"]
        code = subprocess.run(command, cwd=ROOT).returncode
        found = ElementTree.parse(results).iter("testcase") if results.is_file() else ()
        return code, list(_broken(found))


def _broken(cases: Iterable[ElementTree.Element]) -> Iterable[tuple[str, str]]:
    for case in cases:
        for kind in ("failure", "error"):
            for element in case.findall(kind):
                reason = element.get("message", "").strip() or (element.text or "").strip() or kind
                module = case.get("classname", "")
                yield f"{module}::{case.get('name')}".lstrip(":"), reason.splitlines()[0]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns rows under a head, each column as wide as its widest word but for the last."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 0
    padded = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(word.ljust(width) for word, width in line) for line in padded)


def main() -> None:
    """Runs the short part of the matrix and tells what is different; exits as pytest did."""
    different = drift(pinned())
    code, broken = run_tests([*_SHORT_PART, *_SIDE_BY_SIDE])
    print()
    if different:
        print(table(("package", "tested", "newest"), different))
    else:
        print(f"every package has the version of {CONSTRAINTS.name}")
    print()
    if broken:
        print(table(("broken", "why"), broken))
    elif code:
        print(f"pytest ended with {code} before it ran the tests; see above")
    else:
        print("nothing broke")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
