"""The LM head where a label is, and nowhere else.

TRL's fused head scores every position on a CPU, and on a GPU asks the labels which to score, for
which the CPU has to wait. Here the positions are known from the DataLoader, and what the backbone
returns is narrowed to them before the head sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sailplan.model.parts import base_model

MOST_LOGITS = 2**26
"""How many `label_losses` makes at once: 256 MiB in float32."""


class HeadPositions:
    """Narrows the backbone's output to some positions, while it is told to.

    Args:
        model: The model, wrapped by PEFT or not, before anything else wraps it.
    """

    def __init__(self, model: Any) -> None:
        self._positions: torch.Tensor | None = None
        base_model(model).base_model.register_forward_hook(self._narrow)

    @contextmanager
    def at(self, positions: torch.Tensor) -> Iterator[None]:
        """Narrows in this context.

        Args:
            positions: Indices into the flattened batch, `[labels]`; hidden states then are
                `[1, labels, hidden_size]`.
        """
        self._positions = positions
        try:
            yield
        finally:
            self._positions = None

    def _narrow(self, _module: nn.Module, _inputs: Any, outputs: Any) -> Any:
        if self._positions is not None:
            states = outputs.last_hidden_state.flatten(0, 1)
            outputs.last_hidden_state = states[self._positions][None]
        return outputs


def label_losses(
    model: Any,
    inputs: Mapping[str, Any],
    positions: torch.Tensor,
    labels: torch.Tensor,
    *,
    most_logits: int = MOST_LOGITS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the loss of each label in nats, and whether it is the model's first choice.

    The head is the model's own, with all that it does to its logits. A large vocabulary has it
    called for some labels at a time, over what the backbone has said once.

    Args:
        model: The model, wrapped by PEFT or not; no gradients are wanted of it.
        inputs: What it is called with, without labels.
        positions: The tokens that predict a label, counted through the flattened batch, `[labels]`.
        labels: What each is to predict, `[labels]`.
        most_logits: How many logits are made at once.

    Returns:
        `[labels]` in float32, and `[labels]` of truth values.
    """
    vocabulary = base_model(model).config.get_text_config().vocab_size
    piece = max(1, most_logits // vocabulary)
    losses, firsts = [], []
    with _BackboneOnce(model, positions) as backbone:
        for start in range(0, len(positions), piece):
            backbone.shown = slice(start, start + piece)
            logits = model(**inputs, use_cache=False).logits[0].float()
            wanted = labels[start : start + piece]
            losses.append(nn.functional.cross_entropy(logits, wanted, reduction="none"))
            firsts.append(logits.argmax(-1) == wanted)
    return torch.cat(losses), torch.cat(firsts)


class _BackboneOnce:
    """A model whose backbone, in this context, computes once and then shows pieces of that.

    Args:
        model: The model.
        positions: What of the flattened batch is kept, `[labels]`.
    """

    shown = slice(None)
    """Which of the positions the head is given."""

    def __init__(self, model: Any, positions: torch.Tensor) -> None:
        self._backbone = base_model(model).base_model
        self._positions = positions
        self._outputs: Any = None
        self._states = torch.empty(0)

    def __enter__(self) -> _BackboneOnce:
        # Where something has put a forward there before, such as accelerate, it comes back.
        self._before = vars(self._backbone).get("forward")
        self._own = self._backbone.forward
        self._backbone.forward = self._forward
        return self

    def __exit__(self, *_error: object) -> None:
        if self._before is None:
            del self._backbone.forward
        else:
            self._backbone.forward = self._before

    def _forward(self, *arguments: Any, **options: Any) -> Any:
        if self._outputs is None:
            self._outputs = self._own(*arguments, **options)
            self._states = self._outputs.last_hidden_state.flatten(0, 1)[self._positions]
        self._outputs.last_hidden_state = self._states[None, self.shown]
        return self._outputs
