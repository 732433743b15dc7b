"""How models answer: the `generation:` block of a run file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import RunFileError
from sailplan.run.blocks import GenerationBlock
from sailplan.run.config import Run


def read(folder: Path, text: str, *flags: str) -> Run:
    path = folder / "run.yaml"
    path.write_text(text)
    return Run.from_file(path, flags)


def test_generation_has_the_documented_defaults(tmp_path: Path) -> None:
    block = read(tmp_path, "seed: 1\n").generation
    assert block.model_dump() == {
        "max_new_tokens": 256,
        "temperature": 0.8,
        "top_p": 1.0,
        "seed": 0,
        "batch_size": 8,
    }


def test_flags_win_over_the_block(tmp_path: Path) -> None:
    text = "generation: {temperature: 0.5, max_new_tokens: 32}\n"
    flags = ["--generation.temperature", "0", "--generation.top_p=0.9"]
    assert read(tmp_path, text, *flags).generation == GenerationBlock(
        temperature=0, max_new_tokens=32, top_p=0.9
    )


def test_run_file_that_is_written_keeps_the_block_and_what_ranks_read_has_none(
    tmp_path: Path,
) -> None:
    run = read(tmp_path, "generation:\n  temperature: 0\n  seed: 7\n  batch_size: 2\n")
    again = read(tmp_path, run.run_yaml())
    assert again.generation == run.generation
    assert "generation" not in run.train_yaml()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "max_new_tokens: 0",
            "generation.max_new_tokens is '0'; allowed: greater than or equal to 1",
        ),
        (
            "temperature: -0.1",
            "generation.temperature is '-0.1'; allowed: greater than or equal to 0",
        ),
        ("temperature: hot", "generation.temperature is 'hot'; allowed: a number"),
        ("top_p: 0", "generation.top_p is '0'; allowed: greater than 0"),
        ("top_p: 1.5", "generation.top_p is '1.5'; allowed: less than or equal to 1"),
        ("seed: -1", "generation.seed is '-1'; allowed: greater than or equal to 0"),
        ("batch_size: many", "generation.batch_size is 'many'; allowed: a whole number"),
        ("temperatur: 1", "unknown key generation.temperatur; did you mean temperature?"),
    ],
)
def test_setting_that_cannot_be_is_refused_by_its_line(
    tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(RunFileError) as caught:
        read(tmp_path, f"seed: 1\ngeneration:\n  {setting}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}:3: ")
    assert message in str(caught.value)
