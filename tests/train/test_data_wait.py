"""What a user reads where steps wait for their data: the share, the cause, and the way out."""

from __future__ import annotations

import pytest

from sailplan.train.data_wait import Loading, Waited, explain

LOADING = Loading(workers=2, cores=16, ranks=2, spare=7, persistent=False, streams=False)


def waited(
    *, read_s: float, collate_s: float, images: int = 0, cpu: float = 1.0, epochs_s: float = 0.0
) -> Waited:
    """Ten steps of 40 seconds, 10 of them waiting, with 8 samples each."""
    counts = {
        "samples": 80,
        "images": images,
        "pixels": images * 3 * 500_000,
        "read_s": read_s,
        "collate_s": collate_s,
        "cpu_s": cpu * (read_s + collate_s),
    }
    return Waited(
        first_step=11,
        last_step=20,
        seconds=40.0,
        waited_s=10.0,
        epoch_began_s=epochs_s,
        counts=counts,
    )


def with_(**changes: object) -> Loading:
    from dataclasses import replace

    return replace(LOADING, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("steps", "loading", "load", "line"),
    [
        (
            waited(read_s=20, collate_s=80, images=120),
            LOADING,
            4.0,
            "waiting for data: 25% of the time of steps 11 to 20; a step takes 10.0 s to load "
            "(80% decoding 12 images, of 0.5 megapixels as the model sees them, 20% reading rows) "
            "and 3.0 s to compute; set dataloader_num_workers: 4 (now 2; 16 cores for 2 ranks)",
        ),
        (
            waited(read_s=1, collate_s=9, images=10),
            with_(workers=0, ranks=1, cores=1, spare=0),
            1.0,
            "waiting for data: 25% of the time of steps 11 to 20; a step takes 1.0 s to load "
            "(90% decoding 1 image, of 0.5 megapixels as the model sees them, 10% reading rows) "
            "and 3.0 s to compute; no core is left of 1 for 1 rank with 0 workers each: give the "
            "run more (--cpus-per-task), lower max_pixels, or store the images smaller",
        ),
        (
            waited(read_s=90, collate_s=10),
            with_(streams=True, workers=7),
            15.0,
            "waiting for data: 25% of the time of steps 11 to 20; a step takes 10.0 s to load "
            "(90% reading and tokenising rows, 10% padding 8 rows) and 3.0 s to compute; no core "
            "is left of 16 for 2 ranks with 7 workers each: give the run more (--cpus-per-task), "
            "train without dataset_streaming, which tokenises once",
        ),
        (
            waited(read_s=80, collate_s=20, cpu=0.1),
            LOADING,
            2.0,
            "waiting for data: 25% of the time of steps 11 to 20; a step takes 10.0 s to load "
            "(80% reading rows, 20% padding 8 rows) and 3.0 s to compute; its worker mostly waits "
            "itself, for a disk or a network: copy the data to a local disk, or set "
            "dataloader_num_workers: 4",
        ),
        (
            waited(read_s=0.5, collate_s=0.4, epochs_s=9),
            LOADING,
            2.0,
            "waiting for data: 25% of the time of steps 11 to 20; a step takes 90 ms to load "
            "(56% reading rows, 44% padding 8 rows) and 3.0 s to compute; most of the wait is for "
            "workers to start with each epoch: set dataloader_persistent_workers: true",
        ),
    ],
    ids=["decoding", "no-core", "tokenising", "disk", "epochs"],
)
def test_waiting_is_told_with_its_cause_and_what_to_do(
    steps: Waited, loading: Loading, load: float, line: str
) -> None:
    assert explain(steps, loading, load=load) == line


def test_a_worker_that_waits_for_a_core_is_not_taken_for_a_slow_disk() -> None:
    line = explain(waited(read_s=80, collate_s=20, cpu=0.1), LOADING, load=40.0)
    assert line.endswith("set dataloader_num_workers: 4 (now 2; 16 cores for 2 ranks)")
