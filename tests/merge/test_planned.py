"""What torch does to a planned tensor is what it does to the tensor itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sailplan.checkpoint import safetensors
from sailplan.merge.planned import Planned
from sailplan.merge.tensor_plan import TensorPlan
from tests.merge.planned import values

Rearrange = Callable[..., torch.Tensor]

REARRANGEMENTS: dict[str, Rearrange] = {
    "nothing": lambda a, b: a,
    "cat rows": lambda a, b: torch.cat([a, b], dim=0),
    "cat columns": lambda a, b: torch.cat([a, b], dim=1),
    "stack": lambda a, b: torch.stack([a, b]),
    "stack inside": lambda a, b: torch.stack([a, b], dim=1),
    "fuse experts": lambda a, b: torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=1),
    "chunk": lambda a, b: torch.chunk(a, 3)[1].contiguous(),
    "chunk columns": lambda a, b: torch.chunk(a, 2, dim=1)[1].contiguous(),
    "chunk of cat": lambda a, b: torch.chunk(torch.cat([a, b], dim=1), 2)[1].contiguous(),
    "split": lambda a, b: torch.split(a, [2, 4])[1].contiguous(),
    "one row": lambda a, b: a[2],
    "unbind": lambda a, b: torch.unbind(torch.stack([a, b]))[1],
    "permute heads": lambda a, b: a.view(3, 2, 1, 4).transpose(1, 2).reshape(6, 4),
    "permute halves": lambda a, b: a.view(2, 3, 4).transpose(0, 1).reshape(6, 4),
    "flatten": lambda a, b: a.reshape(6, 2, 2).reshape(6, -1).contiguous(),
    "transpose": lambda a, b: a.transpose(0, 1).contiguous(),
    "transpose matrices": lambda a, b: torch.stack([a, b]).transpose(1, 2).contiguous(),
    "transpose twice": lambda a, b: a.t().contiguous().t().contiguous(),
    "transpose a part": lambda a, b: torch.chunk(a, 2)[1].t().contiguous(),
}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    tensors = {"a": torch.arange(24.0).view(6, 4), "b": torch.arange(100.0, 124.0).view(6, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tensors


def plans(folder: Path) -> list[TensorPlan]:
    found = safetensors.read(folder / "model.safetensors")
    return [
        TensorPlan(name=name, dtype=tensor.dtype, source=tensor.pieces())
        for name, tensor in sorted(found.items())
    ]


@pytest.mark.parametrize("name", REARRANGEMENTS)
def test_rearranged_plan_is_the_rearranged_tensor(
    tmp_path: Path, stored: dict[str, torch.Tensor], name: str
) -> None:
    rearrange = REARRANGEMENTS[name]
    made = rearrange(*map(Planned.of, plans(tmp_path)))
    assert isinstance(made, Planned)

    expected = rearrange(*stored.values())
    assert made.shape == expected.shape
    assert made.dtype == expected.dtype
    assert values(made.plan("made")).equal(expected)


def test_what_was_rearranged_and_put_back_is_copied_as_it_lies(
    tmp_path: Path, stored: dict[str, torch.Tensor]
) -> None:
    first, second = plans(tmp_path)
    fused = torch.cat([Planned.of(first), Planned.of(second)])
    back = torch.chunk(fused, 2)[0].contiguous().t().contiguous().t().contiguous()
    assert isinstance(back, Planned)
    assert back.plan("a") == first


class Doubled:
    """A delta whose row is a row, and which knows where it is."""

    columns = 4
    reads: dict[str, object] = {}  # noqa: RUF012

    def rows(self, weight: torch.Tensor, start: int) -> torch.Tensor:
        numbers = torch.arange(start, start + len(weight)).view(-1, 1)
        return weight * 2 + 1000 * numbers


OF_WHOLE_ROWS = [name for name in REARRANGEMENTS if "columns" not in name and "of cat" not in name]


@pytest.mark.parametrize("name", OF_WHOLE_ROWS)
def test_delta_follows_its_rows(tmp_path: Path, stored: dict[str, torch.Tensor], name: str) -> None:
    first, second = plans(tmp_path)
    changed = TensorPlan(name="a", dtype="float32", source=first.source, delta=Doubled())
    merged = stored["a"] * 2 + 1000 * torch.arange(6.0).view(6, 1)

    made = REARRANGEMENTS[name](Planned.of(changed), Planned.of(second))

    assert isinstance(made, Planned)
    assert values(made.plan("made")).equal(REARRANGEMENTS[name](merged, stored["b"]))


def test_delta_whose_rows_are_cut_is_refused(
    tmp_path: Path, stored: dict[str, torch.Tensor]
) -> None:
    first, _ = plans(tmp_path)
    changed = TensorPlan(name="a", dtype="float32", source=first.source, delta=Doubled())
    half = torch.chunk(Planned.of(changed), 2, dim=1)[0].contiguous()
    assert isinstance(half, Planned)
    with pytest.raises(NotImplementedError, match="rows that an adapter changes"):
        half.plan("made")


def test_arithmetic_is_refused_by_name(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=r"aten\.add.* needs the values of a tensor"):
        Planned.of(plans(tmp_path)[0]) + 1
