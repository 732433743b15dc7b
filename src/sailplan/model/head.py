"""The LM head where a label is, and nowhere else.

TRL's fused head scores every position on a CPU, and on a GPU asks the labels which to score, for
which the CPU has to wait. Here the positions are known from the DataLoader, and what the backbone
returns is narrowed to them before the head sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sailplan.model.parts import base_model


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
