"""The house: imports follow the floors, the login wing stays light, no module outgrows its room."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[1] / "src"
MODULES = sorted((SOURCES / "sailplan").rglob("*.py"))


def name_of(path: Path) -> str:
    """A module's dotted name."""
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}

FLOORS = (
    {"errors", "__init__"},
    {"files", "imports", "processes", "progress", "records", "sizes", "terminal"},
    {"pages"},
    {"hub"},
    {"run", "hardware", "checkpoint"},
    {"model"},
    {"data", "merge"},
    {"evaluate", "inspect", "plan", "export"},
    {"launcher", "train", "fetch"},
    {"slurm"},
    {"supervise"},
    {"report"},
    {"demo"},
    {"preflight"},
    {"cli"},
    {"__main__"},
)
"""From the ground up, as docs/architecture.md has them; a room imports only from below."""

LOGIN_WING = {
    "errors",
    "files",
    "imports",
    "processes",
    "progress",
    "records",
    "sizes",
    "terminal",
    "pages",
    "hub",
    "run",
    "hardware",
    "launcher",
    "slurm",
    "supervise",
    "report",
    "preflight",
    "cli",
}
HEAVY = ["torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "pandas"]

MAX_LINES = 300


def room_of(module: str) -> str:
    """The package or ground module that a dotted name belongs to."""
    return [*module.split("."), "__init__"][1]


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(path: Path) -> Iterator[str]:
    """Yields every module of ours that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(name_of(path)) for path in MODULES}
    assert rooms <= set().union(*FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_from_below(path: Path) -> None:
    own = room_of(name_of(path))
    wrong = [
        module
        for module in imports_of(path)
        if module.split(".")[0] == "sailplan"
        and room_of(module) != own
        and floor_of(room_of(module)) >= floor_of(own)
    ]
    assert not wrong, f"{own} imports {wrong}, from its own floor or above"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_fits_its_room(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def run_python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_login_wing_imports_nothing_heavy() -> None:
    wing = [name_of(path) for path in MODULES if room_of(name_of(path)) in LOGIN_WING]
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))"
    )
    assert json.loads(run_python(program, json.dumps(HEAVY), *wing)) == []


def test_dry_run_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: a/b\ndataset_name: c/d\noutput_dir: {tmp_path}/out\n")
    program = (
        "import json, sys\n"
        "from sailplan.cli.main import app\n"
        "app(['train', sys.argv[2], '--dry-run'], standalone_mode=False)\n"
        "print()\n"
        "print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))"
    )
    printed = run_python(program, json.dumps(HEAVY), str(path))
    assert "accelerate launch" in printed
    assert json.loads(printed.splitlines()[-1]) == []


@pytest.mark.parametrize(("command", "most"), [("--help", 200), ("runs /", 450), ("families", 450)])
def test_command_that_answers_at_once_imports_little(command: str, most: int) -> None:
    """Its time is that of its imports; `benchmarks/answers_at_once.py` measures it."""
    program = (
        "import sys\n"
        "from sailplan.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print(len(sys.modules))"
    )
    printed = run_python(program, *command.split())
    assert int(printed.split()[-1]) <= most


def test_checkpoints_and_merging_import_no_training_library() -> None:
    rooms = ("checkpoint", "merge")
    wanted = [name_of(path) for path in MODULES if room_of(name_of(path)) in rooms]
    program = (
        "import importlib, json, sys\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]))"
    )
    heavy = ["deepspeed", "trl", "peft", "transformers", "accelerate"]
    assert len(wanted) > 25
    assert json.loads(run_python(program, json.dumps(heavy), *wanted)) == []
