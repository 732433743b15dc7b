"""The stretches of a micro batch as it is simulated: which layer is at work, and what is alive."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sailplan.plan.simulation.depth import Stack


@dataclass(kw_only=True, slots=True)
class Stretch:
    """One layer's forward or backward, or what lies between layers."""

    phase: str
    """`forward` or `backward`."""
    module: str
    """The layer's name in the shallow model, or what stands in for one."""
    stack: int | None
    """Index of the stack that the layer is in, None between layers."""
    index: int
    """The layer's place in it."""
    began: int
    """Bytes alive when it began."""
    worst: int
    """The most that was alive in it."""
    worst_with_own: int = 0
    """The same where gradients that it has made are kept until it ends."""
    own: int = 0
    """Bytes of those gradients so far."""
    left: int = 0
    """Bytes alive when it ended."""
    casts: int = 0
    """Of them, weights in another dtype, which autocast keeps."""
    casts_saved: int = 0
    """What is left of those when the next stretch begins."""
    flops: float = 0.0
    closed: bool = False


@dataclass(kw_only=True, slots=True)
class Recorder:
    """The stretches so far. The functions say where things stand when they are asked."""

    alive: Callable[[], int]
    casts: Callable[[], int]
    flops: Callable[[], float]
    stretches: list[Stretch] = field(default_factory=list)
    _flops: float = 0.0

    @property
    def phase(self) -> str:
        """The phase of the stretch that is under way."""
        return self.stretches[-1].phase

    def begin(self, phase: str, module: str, stack: int | None = None, index: int = 0) -> None:
        """Ends a stretch and begins the next."""
        self.end()
        alive = self.alive()
        if self.stretches:
            self.stretches[-1].casts_saved = self.casts()
        self.stretches.append(
            Stretch(
                phase=phase,
                module=module,
                stack=stack,
                index=index,
                began=alive,
                worst=alive,
                worst_with_own=alive,
            )
        )

    def end(self) -> None:
        """Closes the last stretch, where it is still open."""
        flops = self.flops()
        if self.stretches and not self.stretches[-1].closed:
            self.stretches[-1].closed = True
            self.stretches[-1].left = self.alive()
            self.stretches[-1].casts = self.casts()
            self.stretches[-1].flops = flops - self._flops
        self._flops = flops

    def grown(self, alive: int) -> None:
        """Notes that more is alive than a moment ago."""
        if self.stretches:
            last = self.stretches[-1]
            last.worst = max(last.worst, alive)
            last.worst_with_own = max(last.worst_with_own, alive + last.own)

    def gradient(self, size: int) -> None:
        """Notes a gradient that was handed over."""
        self.stretches[-1].own += size


@contextlib.contextmanager
def watched_layers(recorder: Recorder, model: Any, stacks: Sequence[Stack]) -> Iterator[None]:
    """Has the recorder told when each layer begins, forward and backward.

    A layer's backward begins when the gradient of its output is there, and that of what comes
    before a stack when the gradient of the stack's input is. What checkpointing computes again
    belongs to the backward that asks for it.

    Args:
        recorder: Told of each.
        model: The model, not wrapped by PEFT.
        stacks: The layers to watch.
    """

    def backward(module: str, stack: int | None = None, index: int = 0) -> Callable[[Any], None]:
        return lambda _gradient: recorder.begin("backward", module, stack, index)

    def enter(module: str) -> Callable[..., None]:
        def hook(_layer: Any, args: Any, kwargs: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if recorder.phase != "forward" or given is None or given.is_leaf:
                return
            if given.requires_grad:
                given.register_hook(backward(f"before {module}"))

        return hook

    def start(module: str, stack: int, index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if recorder.phase == "forward":
                recorder.begin("forward", module, stack, index)

        return hook

    def stop(module: str, stack: int, index: int) -> Callable[..., None]:
        def hook(_layer: Any, _args: Any, output: Any) -> None:
            if recorder.phase == "forward":
                made = output[0] if isinstance(output, tuple) else output
                if made.requires_grad:
                    made.register_hook(backward(module, stack, index))
                recorder.begin("forward", f"after {module}")

        return hook

    handles = []
    for number, stack in enumerate(stacks):
        for index, layer in enumerate(model.get_submodule(stack.name)):
            module = f"{stack.name}.{index}"
            if index == 0:
                handles.append(layer.register_forward_pre_hook(enter(module), with_kwargs=True))
            handles.append(layer.register_forward_pre_hook(start(module, number, index)))
            handles.append(layer.register_forward_hook(stop(module, number, index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def watched_gradients(model: Any, hide: Callable[[Any], int], recorder: Recorder) -> Iterator[None]:
    """Takes each gradient away as soon as it is whole: what becomes of it is the strategy's affair.

    Args:
        model: The model that trains.
        hide: Stops counting a tensor, and returns its bytes.
        recorder: Told of each.
    """

    def hand_over(parameter: Any) -> None:
        recorder.gradient(hide(parameter.grad))
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
