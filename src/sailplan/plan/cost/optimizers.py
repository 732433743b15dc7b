"""What an optimizer keeps and needs, by the names of transformers' `optim`."""

from __future__ import annotations

from dataclasses import dataclass

from sailplan.plan.profile import Profile

_EIGHT_BIT_MIN = 4096
"""bitsandbytes keeps smaller tensors in 32 bits."""

_STATES = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_apex_fused": 2,
    "adagrad": 1,
    "rmsprop": 1,
    "sgd": 0,
    "lion_32bit": 1,
    "paged_lion_32bit": 1,
    "paged_adamw_32bit": 2,
    "rmsprop_bnb": 1,
    "rmsprop_bnb_32bit": 1,
    "ademamix": 3,
    "paged_ademamix_32bit": 3,
}
"""States of each weight; of the weight's own dtype, float32 with bitsandbytes."""

_EIGHT_BIT = {
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
    "rmsprop_bnb_8bit": 1,
    "ademamix_8bit": 3,
    "paged_ademamix_8bit": 3,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes of the states of all weights that train."""

    of_parameters: float
    """Where the optimizer has the model's own weights."""
    of_float32: float
    """Where it has float32 copies of them, which DeepSpeed and FSDP make."""


def state_bytes(optimizer: str, profile: Profile) -> States:
    """Returns what an optimizer keeps between steps.

    Paged states are counted in full: they leave the GPU only when it is short of memory.
    """
    trained = profile.trained_parameters
    own = sum(group.trained_bytes for group in profile.groups)
    if optimizer in _EIGHT_BIT:
        count = _EIGHT_BIT[optimizer]
        size = sum(_eight_bit(elements) for g in profile.groups for elements in g.trained_tensors)
        return States(of_parameters=count * size, of_float32=count * size)
    if optimizer == "adafactor":  # rows and columns, next to nothing
        return States(of_parameters=0.01 * own, of_float32=0.01 * 4 * trained)
    count = _STATES.get(optimizer, 2)
    in_float32 = "bnb" in optimizer or "paged" in optimizer or optimizer.endswith("32bit")
    return States(
        of_parameters=count * (4 * trained if in_float32 else own), of_float32=count * 4 * trained
    )


def _eight_bit(elements: int) -> float:
    if elements < _EIGHT_BIT_MIN:
        return 4 * elements
    return elements + 4 * -(-elements // 256)


def step_bytes(optimizer: str, profile: Profile, kept: int) -> int:
    """Returns what a step needs for a moment.

    torch's foreach implementation makes a list of temporaries as large as the weights
    (`adamw_torch` without `fused`); fused and bitsandbytes' kernels work in place.
    """
    if optimizer == "adamw_torch" and kept:
        return sum(group.trained_bytes for group in profile.groups)
    return 0
