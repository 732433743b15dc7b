"""What jobs ask Slurm for, as options in their scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sailplan.errors import RunFileError
from sailplan.slurm.jobs import Kind
from sailplan.slurm.request import directives, seconds
from tests.slurm.asked import asked


def options(kind: Kind = "train", *, nodes: int = 1, gpus: int = 8, **settings: Any) -> list[str]:
    return list(directives(asked(kind, nodes=nodes, gpus=gpus, settings=settings)))


def among(found: list[str], *names: str) -> list[str]:
    """Those options that have one of the names."""
    return [option for option in found if option.lstrip('"').split("=")[0] in names]


GPU_OPTIONS = ("--gres", "--gpus-per-node", "--gpus-per-task", "--gpus")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["--gres=gpu:8"]),
        ({"gpu_type": "h100"}, ["--gres=gpu:h100:8"]),
        ({"gpu_request": "gpus_per_node"}, ["--gpus-per-node=8"]),
        ({"gpu_request": "gpus_per_node", "gpu_type": "h100"}, ["--gpus-per-node=h100:8"]),
        ({"gpu_request": "gpus_per_task"}, ["--gpus-per-task=8"]),
        ({"gpu_request": "none"}, []),
        (
            {"gres": "gpu:a100:8,lscratch:100", "gpu_type": "h100"},
            ["--gres=gpu:a100:8,lscratch:100"],
        ),
    ],
)
def test_gpus_are_asked_for_in_the_style_of_the_cluster(
    settings: dict[str, Any], expected: list[str]
) -> None:
    assert among(options(**settings), *GPU_OPTIONS) == expected


def test_run_on_cpus_asks_for_no_gpu() -> None:
    assert among(options(gpus=0, gres="gpu:8", gpu_type="h100"), *GPU_OPTIONS) == []


def test_one_launcher_a_node_is_asked_for() -> None:
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1"} <= {*options(nodes=3)}


@pytest.mark.parametrize(
    ("gpus", "settings", "expected"),
    [
        (8, {}, ["--cpus-per-task=8"]),
        (8, {"exclusive": True}, []),
        (0, {}, []),
        (8, {"cpus_per_gpu": 12}, ["--cpus-per-task=96"]),
        (8, {"cpus_per_gpu": 12, "cpus_per_task": 7}, ["--cpus-per-task=7"]),
        (8, {"cpus_per_gpu": 1, "mem_per_gpu": "120G"}, ["--cpus-per-task=8", "--mem=960G"]),
        (8, {"cpus_per_gpu": 1, "mem_per_gpu": "1500"}, ["--cpus-per-task=8", "--mem=12000"]),
        (8, {"cpus_per_gpu": 1, "mem_per_gpu": "64gb"}, ["--cpus-per-task=8", "--mem=512G"]),
        (8, {"cpus_per_gpu": 1, "mem_per_gpu": "9G", "mem": "0"}, ["--cpus-per-task=8", "--mem=0"]),
        (0, {"cpus_per_gpu": 12, "mem_per_gpu": "9G"}, ["--cpus-per-task=12", "--mem=9G"]),
    ],
)
def test_cpus_and_memory_are_those_of_all_gpus_of_a_node(
    gpus: int, settings: dict[str, Any], expected: list[str]
) -> None:
    assert among(options(gpus=gpus, **settings), "--cpus-per-task", "--mem") == expected


def test_memory_that_is_no_size_is_refused() -> None:
    with pytest.raises(RunFileError, match="'a lot' is no size of memory; allowed: such as 120G"):
        options(mem_per_gpu="a lot")


CLUSTER = {
    "partition": "gpu",
    "account": "vision",
    "qos": "long",
    "constraint": "h100&ib",
    "reservation": "course",
    "exclude": "node[7-9]",
    "time": "2-00:00:00",
    "gres": "gpu:h100:8",
    "exclusive": True,
    "cpus_per_task": 96,
    "mem": "1000G",
}
PLACES = ("--partition", "--account", "--qos", "--constraint", "--reservation", "--exclude")
SIZES = ("--time", "--nodes", "--cpus-per-task", "--mem", "--exclusive", *GPU_OPTIONS)


def test_training_asks_for_all_that_is_set() -> None:
    assert among(options(nodes=2, **CLUSTER), *PLACES, *SIZES) == [
        *("--partition=gpu", "--account=vision", "--qos=long", '"--constraint=h100&ib"'),
        *("--reservation=course", '"--exclude=node[7-9]"', "--time=2-00:00:00", "--nodes=2"),
        *("--cpus-per-task=96", "--mem=1000G", "--gres=gpu:h100:8", "--exclusive"),
    ]


def test_merging_asks_for_the_share_of_one_gpu_and_none_of_them() -> None:
    assert among(options("merge", **CLUSTER), "--partition", *SIZES) == [
        *("--partition=gpu", "--time=2-00:00:00", "--nodes=1", "--cpus-per-task=12"),
        "--mem=125G",
    ]


def test_comparing_asks_for_one_gpu_and_its_share() -> None:
    assert among(options("compare", **{**CLUSTER, "gpu_type": "h100"}), *SIZES) == [
        *("--time=2-00:00:00", "--nodes=1", "--cpus-per-task=12", "--mem=125G"),
        "--gres=gpu:h100:1",
    ]
    assert among(options("compare", gpus=0, **CLUSTER), *GPU_OPTIONS) == []


def test_stage_asks_for_what_its_block_says() -> None:
    stage = {
        **{"partition": "big", "account": "other", "qos": "short", "constraint": "bigmem"},
        **{"time": "30", "cpus_per_task": 5, "mem": "7G", "gpus": 2},
    }
    found = options("merge", **CLUSTER, merge=stage)
    assert among(found, *PLACES, *SIZES) == [
        *("--partition=big", "--account=other", "--qos=short", "--constraint=bigmem"),
        *("--time=30", "--nodes=1", "--cpus-per-task=5", "--mem=7G", "--gres=gpu:2"),
    ]


def test_stage_in_a_partition_of_its_own_leaves_what_belongs_to_training() -> None:
    found = options("merge", **CLUSTER, merge={"partition": "cpu"})
    assert among(found, *PLACES) == ["--partition=cpu", "--account=vision"]


def test_memory_of_a_share_is_rounded_up_to_a_whole_number() -> None:
    assert among(options("merge", gpus=8, mem="1T"), "--mem") == ["--mem=128G"]
    assert among(options("merge", gpus=3, mem="100G"), "--mem") == ["--mem=34134M"]
    assert among(options("merge", gpus=8, mem="0"), "--mem") == ["--mem=0"]


def test_nodes_without_gres_are_taken_whole_for_comparing_and_not_for_merging() -> None:
    whole = {"gpu_request": "none", "exclusive": True}
    assert "--exclusive" in options("compare", **whole)
    assert "--exclusive" not in options("merge", **whole)


# Time


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("08:00:00", 28800),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-00:00:01", 86401),
        ("UNLIMITED", None),
        ("1:2:3:4", None),
        ("", None),
    ],
)
def test_time_is_read_as_sbatch_reads_it(written: str, expected: int | None) -> None:
    assert seconds(written) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["--signal=B:USR1@300"]),
        ({"time": "08:00:00"}, ["--signal=B:USR1@300"]),
        ({"time": "10"}, ["--signal=B:USR1@200"]),
        ({"time": "UNLIMITED"}, ["--signal=B:USR1@300"]),
        ({"time": "7-0", "stop_before_s": 100_000}, ["--signal=B:USR1@65535"]),
        ({"stop_before_s": 0}, []),
    ],
)
def test_training_is_warned_before_its_time_is_over(
    settings: dict[str, Any], expected: list[str]
) -> None:
    assert among(options(**settings), "--signal") == expected
    assert among(options("merge", **settings), "--signal") == []


# Mail and words


def test_mail_without_types_tells_of_the_end() -> None:
    names = ("--mail-user", "--mail-type")
    to = {"mail_user": "ann@example.org"}
    assert among(options(**to), *names) == [
        "--mail-user=ann@example.org",
        "--mail-type=END,FAIL,REQUEUE",
    ]
    assert among(options(**to, mail_type="ALL"), *names)[1] == "--mail-type=ALL"
    assert among(options(), *names) == []


def test_own_directives_come_last_each_in_a_line() -> None:
    found = options(directives=["--licenses=a:1", "-C a b", "--comment=two words", "--nodes 3"])
    assert found[-4:] == ["--licenses=a:1", '-C "a b"', '"--comment=two words"', "--nodes 3"]


def test_own_directive_that_is_no_option_is_refused() -> None:
    with pytest.raises(RunFileError, match="'#SBATCH --nodes=2' is no option; allowed: such as"):
        options(directives=["#SBATCH --nodes=2"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain-1.0_a/b:c,d=e+f@g%h", "--qos=plain-1.0_a/b:c,d=e+f@g%h"),
        ("a b", '"--qos=a b"'),
        ("a#b", '"--qos=a#b"'),
        ("it's", '"--qos=it\'s"'),
        ('a"b', r'"--qos=a\"b"'),
        ("a\\b", r'"--qos=a\\b"'),
        ("$(id)", '"--qos=$(id)"'),
    ],
)
def test_words_are_quoted_as_sbatch_reads_them(value: str, expected: str) -> None:
    assert expected in options(qos=value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2.5-vl_7b", "qwen2.5-vl_7b"),
        ("my run", "my_run"),
        ("$(id)\n#SBATCH", "__id___SBATCH"),
        ("söße", "s__e"),
        ("", "catalogue"),
    ],
)
def test_job_is_named_so_that_the_name_stands_anywhere(name: str, expected: str) -> None:
    assert f"--job-name={expected}" in directives(asked(name=name))
    assert f"--job-name={expected}-merge" in directives(asked("merge", name=name))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("/a/b", "--output=/a/b/slurm/train-%j.log"),
        ("/a b/%j", '"--output=/a b/%%j/slurm/train-%j.log"'),
        ("/a\nb", "--output=/dev/null"),
        ("/a\\b", "--output=/dev/null"),
    ],
)
def test_log_is_in_the_run_directory(run: str, expected: str) -> None:
    found = directives(asked(run=Path(run)))
    assert expected in found
    assert "--open-mode=append" in found
