"""What trains of the model, settled between the making of the trainer and the first step."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sailplan.model.checkpointing import open_vision_to_gradients
from sailplan.model.freezing import freeze
from sailplan.model.parts import PROJECTOR, VISION_TOWER
from sailplan.model.trainable import describe, describe_parts, freeze_unused
from sailplan.model.vocabulary import settle_rows
from sailplan.train.optimizer import learning_rates

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import SFTConfig

    from sailplan.run.config import Run


def settle_parts(run: Run, args: SFTConfig, model: PreTrainedModel | PeftModel) -> list[str]:
    """Freezes what does not train, and returns what to tell of it and of the rest.

    Args:
        run: The run.
        args: Its `SFTConfig`.
        model: The model that trains, wrapped by PEFT where it does.

    Raises:
        ModelError: `freeze` names a part in vain, or nothing would train.
    """
    freeze(run, model)
    unused = freeze_unused(model)
    settle_rows(model)
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get(
        "use_reentrant"
    ):
        open_vision_to_gradients(model)
    notes = [f"frozen, because this architecture never uses them: {', '.join(unused)}"]
    return [
        *(notes if unused else []),
        describe(model),
        *describe_parts(model, learning_rates(run, args)),
    ]


def every_rank_needs_images(trained: Collection[str]) -> bool:
    """Tells whether ranks wait for each other in the vision tower or the projector.

    They do where its gradients are reduced, or where its parameters are gathered.

    Args:
        trained: The parts in which anything trains.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    vision = {VISION_TOWER, PROJECTOR} & {*trained}
    return bool(vision) or is_deepspeed_zero3_enabled() or is_fsdp_enabled()
