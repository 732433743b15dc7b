"""What the simulation of one micro batch found: parameters, moments, and operations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """The parameters of one module group: a decoder layer, the embeddings, the head."""

    name: str
    """The module, such as `model.layers.3`."""
    part: str
    """`language_model`, `vision_tower` or `projector`."""
    frozen_elements: int
    """Weights that do not train, as the model counts them."""
    frozen_bytes: int
    """What they take, packed where they are quantised."""
    trained_elements: int
    trained_bytes: int
    """In the dtype that they have when the model is loaded."""
    largest_elements: int
    """Of the largest single tensor."""
    trained_tensors: tuple[int, ...]
    """Elements of each tensor that trains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The worst instant within one stretch of a micro batch."""

    name: str
    """Such as `forward model.layers.0`, `backward head`."""
    phase: str
    """`forward` or `backward`."""
    group: int | None
    """Index of the group of parameters that is at work; None for those outside of layers."""
    began_bytes: int
    """What is alive when the stretch begins, counted as the next."""
    activation_bytes: int
    """Everything alive that is no parameter, no kept gradient and no optimizer state,
    at the worst instant."""
    with_own_gradients_bytes: int
    """The same where the gradients that this stretch has made are still alive."""
    left_bytes: int
    """What is alive when the stretch ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One micro batch, extrapolated to the model's full depth."""

    groups: tuple[Tensors, ...]
    """In the order of the forward pass."""
    moments: tuple[Moment, ...]
    """In the order of time."""
    saved_bytes: int
    """Alive between forward and backward."""
    forward_flops: float
    """Floating point operations of the forward pass."""
    backward_flops: float
    """Of the backward pass, what checkpointing computes again among them."""
    vision_flops: float
    """Of both together, those of the vision tower and the projector."""
    image_tokens: int
    """Of the micro batch, as the model counts them."""
    buffer_bytes: int
    """Buffers of the model."""

    @property
    def parameters(self) -> int:
        """All weights, tied ones once."""
        return sum(group.frozen_elements + group.trained_elements for group in self.groups)

    @property
    def weights_by_part(self) -> dict[str, tuple[int, int]]:
        """For each part of the model, the weights that do not train and those that do."""
        found: dict[str, tuple[int, int]] = {}
        for group in self.groups:
            frozen, trained = found.get(group.part, (0, 0))
            found[group.part] = frozen + group.frozen_elements, trained + group.trained_elements
        return found

    @property
    def trained_parameters(self) -> int:
        """The weights that train."""
        return sum(group.trained_elements for group in self.groups)
