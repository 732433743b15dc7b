"""Folders that a merge writes to: what it refuses there, what it keeps, and a disk that is full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sailplan.errors import CheckpointError, OutputError
from sailplan.merge import write
from sailplan.merge.job import Options, prepare
from sailplan.merge.output import carry_out
from sailplan.merge.verify import verify
from tests.merge.small import SMALL, digests, published


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A published model in several files."""
    return published(tmp_path / "in" / "model")


class TestOutput:
    def test_input_folder_is_refused(self, model: Path) -> None:
        before = digests(model)
        with pytest.raises(OutputError, match="is an input; choose another"):
            carry_out(prepare(model), model, force=True)
        assert digests(model) == before

    def test_folder_above_an_input_is_refused(self, tmp_path: Path, model: Path) -> None:
        before = digests(tmp_path)
        for folder in (model.parent, tmp_path):
            with pytest.raises(OutputError, match=r"holds .*/in/model, which is an input"):
                carry_out(prepare(model), folder, force=True)
        assert digests(tmp_path) == before

    def test_circle_of_links_is_refused(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        with pytest.raises(OutputError, match=r"cannot write .*(circle|levels of symbolic links)"):
            carry_out(prepare(model), tmp_path / "a")
        with pytest.raises(CheckpointError, match=r"(circle|levels of symbolic links)"):
            prepare(tmp_path / "a")

    def test_file_is_refused(self, tmp_path: Path, model: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(OutputError, match="out is a file"):
            carry_out(prepare(model), tmp_path / "out")
        assert (tmp_path / "out").read_text() == "mine"

    def test_another_model_is_kept_until_it_is_forced(self, tmp_path: Path, model: Path) -> None:
        carry_out(prepare(model, Options(max_shard_bytes=20_000)), tmp_path / "out")
        before = digests(tmp_path / "out")
        with pytest.raises(OutputError, match=r"holds a model already; .* --force"):
            carry_out(prepare(model), tmp_path / "out")
        assert digests(tmp_path / "out") == before

        job = prepare(model)
        verify(job, tmp_path / "out", carry_out(job, tmp_path / "out", force=True), "full")

        assert {p.name for p in (tmp_path / "out").iterdir()} == {
            *("model.safetensors", "config.json", "generation_config.json")
        }

    def test_other_options_do_not_go_on_with_a_killed_merge(
        self, tmp_path: Path, model: Path
    ) -> None:
        job = prepare(model, Options(max_shard_bytes=20_000))
        with pytest.raises(KeyboardInterrupt):
            carry_out(job, tmp_path / "out", on_bytes=_stop_after(30_000))
        with pytest.raises(OutputError, match="holds another merge that was not finished"):
            carry_out(prepare(model, Options(max_shard_bytes=30_000)), tmp_path / "out")
        shard = sorted(model.glob("model-*"))[1]
        changed = shard.stat().st_mtime_ns
        os.utime(shard, ns=(changed, changed + 1))
        with pytest.raises(OutputError, match="its inputs or options differ"):
            carry_out(prepare(model, Options(max_shard_bytes=20_000)), tmp_path / "out")
        os.utime(shard, ns=(changed, changed))
        carry_out(job, tmp_path / "out")
        carry_out(job, tmp_path / "undisturbed")
        assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


def _stop_after(num_bytes: int) -> Callable[[int], None]:
    left = num_bytes

    def stop(count: int) -> None:
        nonlocal left
        left -= count
        if left < 0:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    # Lazily: nothing is left mounted, even where a failed test still holds a file of it open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_that_fills_up_is_told_and_the_merge_goes_on(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = LlamaConfig(**{**SMALL.to_dict(), "intermediate_size": 1000})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "model")
    job = prepare(tmp_path / "model", Options(max_shard_bytes=200_000))
    with pytest.raises(OutputError, match=r"has room for 0\.00 GiB"):
        carry_out(job, small_disk / "out")
    # Another program fills the disk after the room was looked at.
    monkeypatch.setattr(write, "_check_room", lambda *_: None)
    with pytest.raises(OutputError, match="No space left on device; make room and run the same"):
        carry_out(job, small_disk / "out")
    there = {path.name for path in (small_disk / "out").iterdir()}
    assert "model.safetensors.index.json" not in there
    assert any(name.startswith("model-00001-of") for name in there)

    remount = ["mount", "-o", "remount,size=4m", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    carry_out(job, small_disk / "out")

    carry_out(job, tmp_path / "undisturbed")
    assert digests(small_disk / "out") == digests(tmp_path / "undisturbed")
