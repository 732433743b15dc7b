"""One micro batch through the real model without its memory: what is alive when, what is computed.

The model has a few layers only; what each further layer adds is what the last of them added.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any

from sailplan.imports import quick_imports
from sailplan.plan.profile import Profile
from sailplan.plan.workload import Workload


def simulate(workload: Workload, *, full_depth: bool = False) -> Profile:
    """Simulates one micro batch.

    Args:
        workload: The micro batch.
        full_depth: Simulate every layer instead of extrapolating; tens of times slower.

    Raises:
        ModelError: transformers does not know the model, or the adapter does not fit it.
    """
    with quick_imports():
        import torch

        from sailplan.model.families import family_of
        from sailplan.model.parts import base_model
        from sailplan.plan.simulation import batch
        from sailplan.plan.simulation.build import build, fake_copy
        from sailplan.plan.simulation.depth import config_of, shallow, stacks_of
        from sailplan.plan.simulation.extrapolate import extrapolate
        from sailplan.plan.simulation.fake import Tracker, fake_mode
        from sailplan.plan.simulation.groups import groups_of
        from sailplan.plan.simulation.loss import loss_of
        from sailplan.plan.simulation.record import Recorder, watched_gradients, watched_layers

    config = config_of(workload.config)
    small = config if full_depth else shallow(config)
    fake = fake_mode()
    whole, model = build(workload, config), fake_copy(build(workload, small), fake)
    base = base_model(model)
    stacks = stacks_of(base_model(whole), base)
    vision: dict[str, Any] = {}
    if workload.images is not None:
        processor = batch.image_processor(config, workload.image_processor)
        vision = {
            name: value if family_of(config).pixels_by_row else _faked(fake, value)
            for name, value in batch.pixels(
                workload.images,
                workload.micro_batch,
                config,
                processor,
                packed=workload.segments is not None,
            ).items()
        }
    held = [*model.parameters(), *model.buffers()]
    with Tracker(fake, held, lambda _: None):
        given = batch.inputs(workload, small, base, vision)

    tracker = Tracker(fake, held, lambda alive: recorder.grown(alive))
    recorder = Recorder(
        alive=lambda: tracker.live_bytes,
        casts=lambda: tracker.cast_bytes,
        flops=lambda: tracker.flops,
    )
    with (
        tracker,
        watched_layers(recorder, base, stacks),
        watched_gradients(model, tracker.hide, recorder),
    ):
        for value in given.values():
            if isinstance(value, torch.Tensor):
                tracker.weigh(value)
        recorder.begin("forward", "embeddings")
        with _autocast(workload.autocast):
            hidden = base.base_model(**given, use_cache=False).last_hidden_state
            recorder.begin("forward", "head")
            head = base.get_output_embeddings()
            loss, kept = loss_of(workload.loss, hidden, head, trained_share=workload.trained_share)
            del hidden
            recorder.end()
        recorder.begin("backward", "head")
        torch.autograd.backward(loss)
        recorder.end()
        del loss, kept
    return extrapolate(
        recorder.stretches,
        stacks,
        groups_of(whole, stacks),
        image_tokens=batch.placeholders(given, small) if vision else 0,
        buffer_bytes=sum(b.numel() * b.element_size() for b in base_model(whole).buffers()),
    )


def simulate_all(workloads: Sequence[Workload], *, processes: int) -> list[Profile]:
    """Simulates several micro batches, as many at a time as there are processes.

    Raises:
        ModelError: As for `simulate`.
    """
    if processes < 2 or len(workloads) < 2:
        return [simulate(workload) for workload in workloads]
    with quick_imports():  # once, before the processes part
        import sailplan.plan.simulation.batch
        import sailplan.plan.simulation.build  # noqa: F401
    # Forked, so that none of them imports the libraries again; nothing has used their threads yet.
    try:
        with multiprocessing.get_context("fork").Pool(min(processes, len(workloads))) as pool:
            return pool.map(_simulate_alone, workloads, chunksize=1)
    except RuntimeError as error:
        if "fork" not in str(error):
            raise
        # A process that has gone through a backward pass before cannot part with its threads.
        return [simulate(workload) for workload in workloads]


def _simulate_alone(workload: Workload) -> Profile:
    import torch

    torch.set_num_threads(1)
    return simulate(workload)


def _faked(fake: Any, value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.dtype.is_floating_point:
        return fake.from_tensor(value)
    return value


@contextlib.contextmanager
def _autocast(dtype: str | None) -> Iterator[None]:
    import torch

    if dtype is None:
        yield
        return
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        yield
