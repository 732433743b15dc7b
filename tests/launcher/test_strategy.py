"""How runs are divided: a table of machines and wishes, and each mistake's own message."""

from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.errors import HardwareError, LaunchError, RunFileError, SailplanError
from sailplan.launcher.strategy import divide, refuse_other_machines
from tests.launcher.support import machine, run

LORA = ("--use_peft",)
QLORA = ("--use_peft", "--load_in_4bit")


@pytest.mark.parametrize(
    ("flags", "gpus", "strategy", "processes"),
    [
        ((), 0, "single", 1),
        ((), 1, "single", 1),
        ((), 8, "zero3", 8),
        (LORA, 8, "ddp", 8),
        (QLORA, 2, "ddp", 2),
        (("--launch.gpus_per_node", "4"), 8, "zero3", 4),
        (("--launch.strategy", "zero2"), 4, "zero2", 4),
        (("--launch.strategy", "single"), 4, "single", 1),
        (("--launch.strategy", "zero3"), 1, "zero3", 1),
        (("--launch.processes", "2"), 0, "zero3", 2),
        (("--launch.processes", "2"), 4, "zero3", 4),
        (("--launch.processes", "2", "--launch.cpu", "true"), 4, "zero3", 2),
        (("--launch.processes", "2", *LORA), 0, "ddp", 2),
        (("--num_processes", "2"), 4, "zero3", 2),
        (("--accelerate_config", "zero1"), 4, "zero1", 4),
        (("--accelerate_config", "deepspeed_zero3_offload"), 2, "zero3_offload", 2),
        (("--accelerate_config", "multi_gpu"), 2, "ddp", 2),
        (("--accelerate_config", "fsdp1"), 2, "fsdp2", 2),
        (("--zero_stage", "3"), 2, "zero3", 2),
        (("--use_deepspeed",), 2, "zero2", 2),
        (("--use_fsdp",), 2, "fsdp2", 2),
        (("--deepspeed", "ds.json"), 2, "ddp", 2),
    ],
)
def test_divide_gives_strategy_and_processes(
    tmp_path: Path, flags: tuple[str, ...], gpus: int, strategy: str, processes: int
) -> None:
    division = divide(run(tmp_path, *flags), machine(gpus=gpus))
    assert (division.preset.strategy, division.processes) == (strategy, processes)


@pytest.mark.parametrize(
    ("flags", "gpus", "strategy", "processes"),
    [
        (("--launch.nodes", "2"), 8, "zero3", 16),
        (("--launch.nodes", "4", *LORA), 1, "ddp", 4),
        (("--launch.nodes", "2", "--launch.gpus_per_node", "4"), 8, "zero3", 8),
        (("--num_machines", "2", "--num_processes", "8"), 8, "zero3", 8),
        (("--launch.nodes", "2", "--launch.processes", "2"), 0, "zero3", 4),
    ],
)
def test_divide_over_several_machines_counts_all_ranks(
    tmp_path: Path, flags: tuple[str, ...], gpus: int, strategy: str, processes: int
) -> None:
    division = divide(run(tmp_path, *flags), machine(gpus=gpus))
    assert (division.preset.strategy, division.processes) == (strategy, processes)
    assert division.processes_per_node * division.nodes == processes


def test_train_of_several_machines_names_submit(tmp_path: Path) -> None:
    refuse_other_machines(run(tmp_path))
    with pytest.raises(LaunchError, match=r"2 machines are asked for.*sailplan submit"):
        refuse_other_machines(run(tmp_path, "--launch.nodes", "2"))


@pytest.mark.parametrize(
    ("flags", "gpus", "note"),
    [
        ((), 0, "training on the CPU: no NVIDIA driver answers"),
        ((), 8, "strategy zero3: 8 processes train all weights, which it shards"),
        (LORA, 2, "strategy ddp: 2 processes train an adapter (use_peft), which each can hold"),
        (("--launch.processes", "3"), 0, "warning: 3 processes share 2 CPU cores"),
        (
            ("--launch.strategy", "ddp", "--zero_stage", "2"),
            2,
            "strategy ddp: launch.strategy wins over accelerate's own keys (zero2)",
        ),
    ],
)
def test_divide_says_what_it_chose_and_why(
    tmp_path: Path, flags: tuple[str, ...], gpus: int, note: str
) -> None:
    notes = divide(run(tmp_path, *flags), machine(gpus=gpus)).notes
    assert [line for line in notes if line.startswith(note)], notes


def test_divide_of_what_was_asked_for_explains_nothing(tmp_path: Path) -> None:
    wanted = run(tmp_path, "--launch.strategy", "zero2", "--launch.gpus_per_node", "2")
    assert divide(wanted, machine(gpus=2)).notes == ()


@pytest.mark.parametrize("strategy", ["auto", "zero1", "zero3", "zero3_offload"])
def test_divide_without_compiler_goes_on_with_one_process(tmp_path: Path, strategy: str) -> None:
    wanted = run(tmp_path, "--launch.processes", "2", "--launch.strategy", strategy)
    division = divide(wanted, machine(cpu_zero=False))
    assert (division.preset.strategy, division.processes) == ("single", 1)
    [line] = [note for note in division.notes if "cannot start" in note]
    assert "no C++ compiler (c++); going on with one process" in line
    assert "the global batch is 1/2 of what was asked" in line


PACKED = ("--use_peft", "--load_in_4bit", "--bnb_4bit_quant_storage")


@pytest.mark.parametrize(
    ("strategy", "storage", "precision"),
    [
        ("zero3", "uint8", "bf16"),
        ("zero3", "bfloat16", "bf16"),
        ("zero2", "float16", "fp16"),
        ("ddp", "float32", "bf16"),
    ],
)
def test_divide_takes_packed_weights_that_nothing_casts(
    tmp_path: Path, strategy: str, storage: str, precision: str
) -> None:
    wanted = run(tmp_path, "--launch.strategy", strategy, *PACKED, storage, f"--{precision}")
    assert divide(wanted, machine(gpus=2)).preset.strategy == strategy


@pytest.mark.parametrize(
    ("flags", "gpus", "error", "message"),
    [
        (
            ("--launch.gpus_per_node", "8"),
            2,
            HardwareError,
            "8 processes are asked for, and there are 2 GPUs here .*NVIDIA L4.*allowed: 1 to 2.*"
            "launch.gpus_per_node: 2",
        ),
        (
            ("--num_machines", "2", "--num_processes", "3"),
            8,
            RunFileError,
            "num_processes 3 does not divide over 2 machines",
        ),
        (
            ("--launch.nodes", "2", "--launch.strategy", "single"),
            1,
            RunFileError,
            "strategy single with 2 processes",
        ),
        (
            ("--launch.strategy", "single", "--launch.gpus_per_node", "2"),
            2,
            RunFileError,
            "strategy single with 2 processes",
        ),
        (("--launch.strategy", "fsdp2"), 0, HardwareError, "fsdp2 on the CPU"),
        (
            ("--launch.strategy", "fsdp2", "--load_in_8bit", "--use_peft"),
            2,
            RunFileError,
            "load_in_8bit with strategy fsdp2",
        ),
        *(
            (
                ("--launch.strategy", strategy, "--load_in_8bit", "--use_peft"),
                2,
                RunFileError,
                f"load_in_8bit with strategy {strategy}, which cannot shard 8-bit weights: each "
                "rank would hold them whole; allowed: single, ddp, zero1, zero2; or load_in_4bit",
            )
            for strategy in ("zero3", "zero3_offload")
        ),
        *(
            (
                ("--launch.strategy", strategy, *PACKED, storage, f"--{precision}"),
                2,
                RunFileError,
                f"bnb_4bit_quant_storage {storage} with strategy {strategy} .*allowed: uint8, ",
            )
            for strategy, storage, precision in (
                ("zero3", "float16", "bf16"),
                ("zero2", "float32", "bf16"),
                ("zero1", "bfloat16", "fp16"),
            )
        ),
        (
            ("--launch.strategy", "zero2", "--deepspeed", "ds.json"),
            2,
            RunFileError,
            "strategy zero2 beside `deepspeed: …`",
        ),
    ],
)
def test_divide_of_what_cannot_run_is_refused(
    tmp_path: Path,
    flags: tuple[str, ...],
    gpus: int,
    error: type[SailplanError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        divide(run(tmp_path, *flags), machine(gpus=gpus))
