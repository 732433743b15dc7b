"""What the doctor says of clusters that are well and of sick ones, by their nodes' records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sailplan.hardware.xids import Xid
from sailplan.preflight.cluster.gather import JUDGES
from sailplan.preflight.cluster.records import (
    MARK,
    PairRate,
    node_file,
    rank_file,
    read,
    write,
)
from tests.preflight.cluster.sick import (
    CACHE,
    H100,
    SOFTWARE,
    driver,
    lines,
    well,
    with_node,
    with_ranks,
    wrong,
)
from tests.preflight.machines import gpu

SECOND = tuple(range(8, 16))


def test_cluster_that_is_well_has_no_fault_and_nothing_unchecked() -> None:
    found = lines(well())
    assert list(found) == [name for name, _ in JUDGES]
    assert {line.mark for line in found.values()} == {"ok"}
    assert {name: line.text for name, line in found.items()} == {
        "nodes": "node1, node2: 2 × 8 ranks",
        "shared disk": "the same on all nodes: /shared/runs/.sailplan-smoke-1, /shared/hub",
        "software": "the same on all nodes: Python 3.11.9, sailplan 0.1.0, torch 2.11.0, 1 more",
        "driver": "580.65.06, up to CUDA 13.0, the same on all nodes",
        "GPUs": f"8 × {H100} on each node",
        "GPU memory": "none since the drivers were loaded, on 16 GPUs",
        "Xid errors": "none in the logs",
        "ranks": "zero3 × 16 over nccl: started in 11.0 s, first sum right in 800 ms, 330.0 GB/s, "
        "a step in 20 ms, loss 1.50 to 0.90",
        "clocks": "within 1 ms on 2 nodes",
        "inside nodes": "360 GB/s at least of 450 GB/s (NVLink 4 with NVSwitch)",
        "across nodes": "330 GB/s at least between two nodes, of 400 GB/s (400 Gb/s a GPU)",
        "steps": "4 ms of work alone; the slowest rank takes 1.00 times the median",
    }


def test_slow_rank_is_named_with_its_node() -> None:
    found = wrong(with_ranks(well(), 13, own_step_s=0.0064, slowed=("heat",)))
    assert list(found) == ["steps"]
    assert found["steps"].text == (
        "rank 13 (node2, cuda:5): 6.4 ms, 1.6 times the median, held down by heat"
    )


def test_slow_rank_on_the_cpu_is_named_and_no_fault() -> None:
    found = well()
    on_cpu = with_ranks(found, *range(16), device="cpu", gpu="")
    line = lines(with_ranks(on_cpu, 13, own_step_s=0.0064))["steps"]
    assert (line.mark, line.fix) == ("ok", "slower: rank 13 (node2)")


def test_node_with_another_torch_is_named() -> None:
    found = wrong(with_node(well(3), "node2", software={**SOFTWARE, "torch": "2.9.0"}))
    assert list(found) == ["software"]
    assert found["software"].text == "node2: torch 2.9.0, elsewhere 2.11.0"


def test_of_two_nodes_the_one_that_differs_from_this_machine_is_named() -> None:
    found = with_node(well(), "node1", software={**SOFTWARE, "torch": "2.9.0"})
    assert wrong(found)["software"].text == "node1: torch 2.9.0, elsewhere 2.11.0"


def test_node_without_a_package_is_named() -> None:
    found = with_node(well(3), "node3", software={**SOFTWARE, "deepspeed": None})
    assert wrong(found)["software"].text == "node3: no deepspeed, elsewhere 0.19.8"


def test_software_that_only_this_machine_has_otherwise_is_no_fault() -> None:
    found = well()
    wanted = replace(found.wanted, software={**SOFTWARE, "torch": "2.12.0"})
    line = lines(replace(found, wanted=wanted))["software"]
    assert line.mark == "ok"
    assert line.fix == "this machine plans with others: torch 2.12.0"


def test_node_with_another_driver_is_named() -> None:
    old = driver(*(gpu(index) for index in range(8)), version="550.54.15")
    found = wrong(with_node(well(3), "node3", driver=old))
    assert found["driver"].text == (
        "node3: 550.54.15, up to CUDA 13.0, elsewhere 580.65.06, up to CUDA 13.0"
    )


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"memory_errors": 2}, "node2 GPU 3: 2 errors"),
        ({"repair": "pending"}, "node2 GPU 3: a reset must take bad rows out"),
        ({"repair": "failed"}, "node2 GPU 3: no spare rows left for bad ones"),
    ],
)
def test_gpu_with_bad_memory_is_named(state: dict[str, object], text: str) -> None:
    bad = driver(*(gpu(index, **(state if index == 3 else {})) for index in range(8)))
    found = wrong(with_node(well(), "node2", driver=bad))
    assert {name: line.text for name, line in found.items()} == {"GPU memory": text}


def test_memory_errors_of_the_past_are_told_and_no_fault() -> None:
    before = driver(*(gpu(index, memory_errors_ever=index % 2) for index in range(8)))
    line = lines(with_node(well(), "node2", driver=before))["GPU memory"]
    assert line.mark == "ok"
    assert "4 in their lives" in line.text


def test_other_gpus_than_the_profile_says_are_named() -> None:
    other = driver(*(gpu(index, name="NVIDIA A100-SXM4-80GB") for index in range(8)))
    found = wrong(with_node(well(), "node2", driver=other))
    assert found["GPUs"].text == ("node2 has NVIDIA A100-SXM4-80GB, and the profile says H100-80GB")


def test_node_that_gives_fewer_gpus_is_named() -> None:
    fewer = driver(*(gpu(index) for index in range(7)))
    found = wrong(with_node(well(), "node1", driver=fewer))
    assert found["GPUs"].text == "node1 gives 7 GPUs, and 8 are asked for"


def test_node_without_a_driver_is_named_with_the_reason() -> None:
    found = wrong(with_node(well(), "node1", driver=None, no_driver="no NVIDIA driver answers"))
    assert found["GPUs"].text == "node1 gives no GPU: no NVIDIA driver answers"
    assert found["driver"].text == "node1: no NVIDIA driver, elsewhere 580.65.06, up to CUDA 13.0"


def test_gpus_of_several_kinds_are_a_fault_where_the_profile_names_none() -> None:
    other = driver(*(gpu(index, name="NVIDIA A100-SXM4-80GB") for index in range(8)))
    found = with_node(well(), "node2", driver=other)
    found = replace(found, wanted=replace(found.wanted, gpu=""))
    assert wrong(found)["GPUs"].text == (f"GPUs of several kinds: NVIDIA A100-SXM4-80GB, {H100}")


def test_xid_of_the_hardware_is_a_fault_with_its_meaning() -> None:
    xids = (Xid(number=79, pci="0000:3b:00", age_s=7200.0), Xid(number=31, pci="", age_s=1.0))
    found = wrong(with_node(well(), "node2", kernel_xids=xids))
    assert found["Xid errors"].text == (
        "node2 at 0000:3b:00: Xid 79 (it fell off the bus), 2.0 h ago"
    )


def test_xid_during_the_job_is_a_fault_of_its_node() -> None:
    found = wrong(with_ranks(well(), 3, xids=(94,)))
    assert found["Xid errors"].text == "node1: Xid 94 (contained memory error), during the job"


def test_xid_of_a_program_is_no_fault() -> None:
    xids = (Xid(number=31, pci="0000:3b:00", age_s=60.0),)
    line = lines(with_node(well(), "node2", kernel_xids=xids))["Xid errors"]
    assert (line.mark, line.text) == ("ok", "1 of programs, none of the hardware")


def test_kernel_log_that_may_not_be_read_is_said() -> None:
    line = lines(with_node(well(), "node1", kernel_xids=None))["Xid errors"]
    assert (line.mark, line.text) == (
        "not checked",
        "the kernel's log may not be read on node1; none during the job",
    )


def test_node_with_half_the_bandwidth_inside_is_named() -> None:
    found = wrong(with_ranks(well(), *SECOND, inside_bytes_s=150e9))
    assert found["inside nodes"].text == "node2: 150 GB/s, of 450 GB/s (NVLink 4 with NVSwitch)"


def test_node_far_slower_than_the_others_is_named_even_above_the_least() -> None:
    found = wrong(with_ranks(well(3), *SECOND, inside_bytes_s=200e9))
    assert list(found) == ["inside nodes"]
    assert found["inside nodes"].text.startswith("node2: 200 GB/s")


def slow_beside(host: str, num_nodes: int) -> dict[str, str]:
    found = well(num_nodes)
    ranks = tuple(
        replace(
            one,
            pairs=tuple(
                PairRate(hosts=pair.hosts, bytes_s=60e9 if host in pair.hosts else 330e9)
                for pair in one.pairs
            ),
        )
        for one in found.ranks
    )
    return {name: line.text for name, line in wrong(replace(found, ranks=ranks)).items()}


def test_node_with_a_slow_network_is_named_by_its_neighbours() -> None:
    assert slow_beside("node3", 4) == {
        "across nodes": "node3: 60 GB/s, of 400 GB/s (400 Gb/s a GPU)"
    }


def test_slow_network_between_two_nodes_names_both() -> None:
    assert slow_beside("node1", 2) == {
        "across nodes": "between node1 and node2: 60 GB/s, of 400 GB/s (400 Gb/s a GPU)"
    }


def test_node_that_did_not_report_is_named() -> None:
    found = well()
    found = replace(found, nodes=found.nodes[:1], ranks=found.ranks[:8])
    faults = wrong(found)
    assert faults["nodes"].text == "nothing from node2"
    assert faults["ranks"].text == "8 of 16 ranks have reported, none of node2"


def test_nothing_from_anybody_is_a_fault_and_the_rest_is_not_checked() -> None:
    found = replace(well(), nodes=(), ranks=())
    faults = wrong(found)
    assert list(faults) == ["nodes", "ranks"]
    assert {line.mark for name, line in lines(found).items() if name not in faults} == {
        "not checked"
    }


def test_run_directory_that_a_node_does_not_see_is_named() -> None:
    faults = wrong(with_node(well(), "node2", token=""))
    assert faults["shared disk"].text == (
        "node2 does not see what the first node wrote in /shared/runs/.sailplan-smoke-1"
    )


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (replace(CACHE, inode=None), "node2 has no /shared/hub"),
        (
            replace(CACHE, inode=9, kind="xfs"),
            "node2 has another /shared/hub than this machine (xfs)",
        ),
        (replace(CACHE, writable=False), "node2 may not write into /shared/hub"),
    ],
)
def test_folder_that_is_another_one_on_a_node_is_named(place: object, text: str) -> None:
    assert wrong(with_node(well(), "node2", places=(place,)))["shared disk"].text == text


def test_ranks_that_do_not_meet_say_who_is_behind() -> None:
    found = with_ranks(well(), *range(8), stage="the first all-reduce")
    found = with_ranks(found, *SECOND, stage="meeting the other ranks")
    line = wrong(found)["ranks"]
    assert line.text.startswith("stopped while meeting the other ranks: rank 8 (node2, cuda:0), ")
    assert "NCCL_SOCKET_IFNAME" in line.fix


def test_ranks_that_each_train_alone_are_a_fault() -> None:
    found = with_ranks(well(), *range(16), world_size=1, engine="Toy")
    assert wrong(found)["ranks"].text == "rank 0 (node1, cuda:0) has met 1 of 16 ranks"


def test_toy_that_was_sharded_otherwise_is_a_fault() -> None:
    found = with_ranks(well(), *range(16), engine="DistributedDataParallel")
    assert "trained as DistributedDataParallel" in wrong(found)["ranks"].text


def test_clock_that_is_wrong_is_named() -> None:
    late = tuple(look + 2.5 for look in well().ranks[0].clocks_s)
    assert wrong(with_ranks(well(), *SECOND, clocks_s=late))["clocks"].text == (
        "node2 by +2.5 s, seen from node1"
    )


def test_rank_that_came_late_once_says_nothing_of_the_clocks() -> None:
    looks = (*(look + 3.0 for look in (100.0, 101.0)), 102.01, 106.0, 107.0)
    assert lines(with_ranks(well(), *SECOND, clocks_s=looks))["clocks"].mark == "ok"


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    found = well()
    for one in found.nodes:
        write(node_file(tmp_path, one.host), one)
    for one_rank in found.ranks:
        write(rank_file(tmp_path, one_rank.rank), one_rank)
    assert read(tmp_path, "", found.wanted) == found


def test_node_that_cannot_write_tells_by_the_log(tmp_path: Path) -> None:
    from json import dumps

    from sailplan.records import to_json

    found = well()
    write(node_file(tmp_path, "node1"), found.nodes[0])
    log = f"some line\n1: {MARK}{dumps(to_json(replace(found.nodes[1], token='')))}\n"
    again = read(tmp_path, log, found.wanted)
    assert [one.host for one in again.printed] == ["node2"]
    faults = wrong(replace(again, ranks=found.ranks))
    assert list(faults) == ["shared disk"]
    assert faults["shared disk"].text.startswith(f"node2 cannot write into {found.wanted.folder}")


def test_record_that_is_torn_counts_as_none(tmp_path: Path) -> None:
    found = well()
    node_file(tmp_path, "node1").write_text('{"host": "no')
    assert read(tmp_path, f"{MARK}nonsense\n", found.wanted).nodes == ()
