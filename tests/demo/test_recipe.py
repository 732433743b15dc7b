from __future__ import annotations

from pathlib import Path

from sailplan.demo.catalogue import SYSTEM_PROMPT, USER_PROMPT
from sailplan.demo.recipe import Files, write_run_files
from sailplan.run.config import Run


def test_run_files_describe_both_steps_whatever_the_folder_is_called(tmp_path: Path) -> None:
    files = Files(folder=tmp_path / 'it\'s: a "demo" #1 {x}')
    files.folder.mkdir()
    write_run_files(files)
    full, qlora = Run.from_file(files.full_run), Run.from_file(files.qlora_run)
    for run in (full, qlora):
        assert run.get("dataset_name") == str(files.catalogue)
        assert run.get("system_prompt") == SYSTEM_PROMPT
        assert run.get("user_prompt") == USER_PROMPT
        assert run.launch.cpu
        assert not run.notes
    assert full.get("model_name_or_path") == str(files.model)
    assert full.get("output_dir") == str(files.full_output)
    assert full.get("answer_column") == "description"
    assert (full.launch.strategy, full.launch.processes) == ("zero3", 2)
    assert not full.get("use_peft")
    assert qlora.get("model_name_or_path") == str(files.full_output)
    assert qlora.get("output_dir") == str(files.qlora_output)
    assert qlora.get("answer_column") == "listing"
    assert (qlora.launch.strategy, qlora.launch.processes) == ("single", 1)
    assert qlora.get("use_peft")
    assert qlora.get("load_in_4bit")


def test_full_run_keeps_its_global_batch_on_one_process(tmp_path: Path) -> None:
    files = Files(folder=tmp_path)
    write_run_files(files)
    run = Run.from_file(files.full_run)
    for world_size, accumulation in ((2, 1), (1, 2)):
        assert run.for_world_size(world_size).get("gradient_accumulation_steps") == accumulation
