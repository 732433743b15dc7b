"""One micro batch through the real model without its memory: what is alive when, and what is computed.

The model has a few layers only; what each further layer adds is what the last of them added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sailplan.plan.profile import Moment, Profile
from sailplan.plan.workload import Workload


@dataclass(kw_only=True, slots=True)
class _Stretch:
    """A part of the micro batch: one layer's forward or backward, or what lies between layers."""

    phase: str
    module: str
    """The layer's name in the shallow model, or `before`, `after` or `between`."""
    stack: int | None = None
    index: int | None = None
    alive: int = 0
    with_own: int = 0
    own: int = 0
    """Bytes of gradients that were made in it."""
    flops: float = 0.0
    end: int = 0
    """Bytes alive when it ended."""


@dataclass(kw_only=True, slots=True)
class Stack:
    """Layers of one kind, of which only a few are simulated."""

    name: str
    """Of the module list, in the model that PEFT does not wrap."""
    depth: int
    shallow: int
    period: int


@dataclass(kw_only=True, slots=True)
class Recorder:
    """The stretches of one micro batch, in order."""

    stretches: list[_Stretch] = field(default_factory=list)
    tracker: Any = None
    _flops: float = 0.0

    def begin(self, phase: str, module: str, stack: int | None = None, index: int | None = None) -> None:
        """Ends a stretch and begins the next."""
        self.end()
        stretch = _Stretch(phase=phase, module=module, stack=stack, index=index)
        self.stretches.append(stretch)
        self.grown(self.tracker.live_bytes)

    def end(self) -> None:
        """Closes the last stretch."""
        if self.stretches:
            last = self.stretches[-1]
            last.end = self.tracker.live_bytes
            last.flops += self.tracker.flops - self._flops
        self._flops = self.tracker.flops

    def grown(self, live: int) -> None:
        """Notes that more is alive than a moment ago."""
        if self.stretches:
            last = self.stretches[-1]
            last.alive = max(last.alive, live)
            last.with_own = max(last.with_own, live + last.own)

    def gradient(self, size: int) -> None:
        """Notes a gradient that was handed over."""
        if self.stretches:
            self.stretches[-1].own += size


def simulate(workload: Workload) -> Profile:
    """Simulates one micro batch.

    Raises:
        ModelError: transformers does not know the model, or the adapter does not fit it.
    """
    import torch

    from sailplan.plan import batch
    from sailplan.plan.build import build, fake_copy
    from sailplan.plan.depth import config_of, shallow
    from sailplan.plan.extrapolate import extrapolate
    from sailplan.plan.fake import Tracker, fake_mode
    from sailplan.plan.groups import groups_of, stacks_of
    from sailplan.plan.loss import loss_of

    config = config_of(workload.config)
    small = shallow(config)
    fake = fake_mode()
    whole = build(workload, config)
    model = fake_copy(build(workload, small), fake)
    base = model.get_base_model() if workload.adapter else model
    stacks = stacks_of(_base(whole), base)
    vision: dict[str, Any] = {}
    if workload.images is not None:
        processor = batch.image_processor(config, workload.image_processor)
        vision = batch.pixels(workload, config, processor)
        vision = {name: _faked(fake, value) for name, value in vision.items()}
    recorder = Recorder()
    held = [*model.parameters(), *model.buffers()]
    tracker = Tracker(fake, held, recorder.grown)
    recorder.tracker = tracker
    with _autocast(None), Tracker(fake, held, lambda _: None):
        given = batch.inputs(workload, small, base, vision)
    tokens = int((given["input_ids"] == batch._image_id(small)).sum()) if vision else 0
    with tracker, _hooks(recorder, base, stacks), _watched_gradients(model, tracker, recorder):
        for value in given.values():
            if isinstance(value, torch.Tensor):
                tracker.weigh(value)
        recorder.begin("forward", "before")
        with _autocast(workload.autocast):
            hidden = base.base_model(**given, use_cache=False).last_hidden_state
            recorder.begin("forward", "head")
            loss, kept = loss_of(
                workload.loss,
                hidden,
                base.get_output_embeddings(),
                trained_share=workload.trained_share,
            )
            del hidden
        recorder.begin("backward", "head")
        saved = tracker.live_bytes
        loss.backward()
        recorder.end()
        del loss, kept
    return extrapolate(
        recorder.stretches,
        stacks,
        groups_of(whole, stacks),
        saved_bytes=saved,
        image_tokens=tokens,
        buffer_bytes=sum(b.numel() * b.element_size() for b in _base(whole).buffers()),
    )


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


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


@contextlib.contextmanager
def _hooks(recorder: Recorder, base: Any, stacks: list[Stack]) -> Iterator[None]:
    """Has the recorder told of each layer, forward and backward."""
    handles = []
    forward = True

    def before(stack: int, index: int, name: str) -> Any:
        def hook(*_: Any) -> None:
            if recorder.stretches[-1].phase == "forward":
                recorder.begin("forward", name, stack, index)

        return hook

    def after(stack: int, index: int, name: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if recorder.stretches[-1].phase != "forward":
                return
            first = output[0] if isinstance(output, tuple) else output
            if first.requires_grad:
                first.register_hook(
                    lambda _grad: recorder.begin("backward", name, stack, index)
                )
            recorder.begin("forward", f"after {name}")

        return hook

    def entered(stack: int, name: str) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if recorder.stretches[-1].phase != "forward":
                return
            first = args[0] if args else kwargs.get("hidden_states")
            if first is not None and first.requires_grad and not first.is_leaf:
                first.register_hook(lambda _grad: recorder.begin("backward", f"before {name}"))

        return hook

    for number, stack in enumerate(stacks):
        layers = base.get_submodule(stack.name)
        for index, layer in enumerate(layers):
            name = f"{stack.name}.{index}"
            if index == 0:
                handles.append(
                    layer.register_forward_pre_hook(entered(number, name), with_kwargs=True)
                )
            handles.append(layer.register_forward_pre_hook(before(number, index, name)))
            handles.append(layer.register_forward_hook(after(number, index, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _watched_gradients(model: Any, tracker: Any, recorder: Recorder) -> Iterator[None]:
    """Hands each gradient over as soon as it is whole: what becomes of it is the strategy's affair."""

    def hand_over(parameter: Any) -> None:
        recorder.gradient(tracker.hide(parameter.grad))
        parameter.grad = None

    handles = [
        parameter.register_post_accumulate_grad_hook(hand_over)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
