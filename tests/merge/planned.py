"""The values that a planned tensor will have, computed at once."""

from __future__ import annotations

import torch

from sailplan.merge.tensor_plan import TensorPlan
from tests.checkpoint.reading import joined


def values(plan: TensorPlan) -> torch.Tensor:
    """Returns the values of a plan's tensor."""
    tensor = joined(plan.source)
    if plan.delta is not None:
        tensor = plan.delta.rows(tensor.view(-1, plan.delta.columns), 0)
    return tensor.reshape(plan.shape).to(getattr(torch, plan.dtype))
