"""The verb table, and how mistakes end."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from sailplan import __version__
from sailplan.cli.main import VERBS, app


def sailplan(*arguments: str) -> tuple[int, str, str]:
    """Runs the command line; returns exit code, standard output and standard error."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_verb_with_its_line() -> None:
    code, out, _ = sailplan("--help")
    assert code == 0
    for verb, line in VERBS.items():
        assert f"  {verb}" in out
        assert line.split()[0] in out


def test_version_is_the_package_version() -> None:
    assert sailplan("--version") == (0, f"sailplan {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_a_function_of_its_module_and_has_help(verb: str) -> None:
    name = verb.replace("-", "_")
    assert find_spec(f"sailplan.cli.{name}")
    assert getattr(import_module(f"sailplan.cli.{name}"), name).__doc__
    code, out, _ = sailplan(verb, "--help")
    assert code == 0
    assert "Usage:" in out


def test_unknown_verb_names_the_nearest() -> None:
    assert sailplan("trian") == (
        2,
        "",
        f"error: there is no verb 'trian'; allowed: {', '.join(VERBS)}; "
        "did you mean `sailplan train`?\n",
    )


def test_unknown_verb_near_none_points_to_help() -> None:
    code, _, err = sailplan("xyzzy")
    assert code == 2
    assert err.endswith("; see `sailplan --help`\n")


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sailplan", "trian"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no verb 'trian'")
    assert len(done.stderr.splitlines()) == 1
