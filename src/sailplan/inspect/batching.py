"""How a run makes micro batches of its samples: read from the run, without the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sailplan.data.balance import Work
from sailplan.data.sampler import Samples
from sailplan.data.work import patches_per_token, work_from
from sailplan.inspect.padding import Padding, Settings, padding_of
from sailplan.model.batching import choose_batching
from sailplan.model.families import Family
from sailplan.model.load import attention, classes
from sailplan.model.parts import LANGUAGE_MODEL, parameters_by_part
from sailplan.model.source import load_config

if TYPE_CHECKING:
    from sailplan.run.config import Run


def batching_of(run: Run, family: Family) -> Settings:
    """Returns how micro batches are made.

    Ranks are those that the run file names, one where it names none.

    Args:
        run: The run.
        family: The model's family.

    Raises:
        RunFileError: Packing is asked for and the model cannot.
    """
    packs, why = choose_batching(run, family, attention(run)[0])
    written = run.get("per_device_train_batch_size")
    micro = written if isinstance(written, int) else 1
    ranks = (run.launch.gpus_per_node or 1) * (run.launch.nodes or 1)
    accumulated = run.get("gradient_accumulation_steps") or 1
    order = run.get("train_sampling_strategy") or "random"
    multiple = run.get("pad_to_multiple_of")  # `auto` fills nothing up on GPUs
    return Settings(
        packs=packs,
        why=why,
        micro_batch_size=micro,
        step_samples=run.get("global_batch_size") or micro * accumulated * ranks,
        order=order,
        dealt=order != "group_by_length" and not run.get("dataset_streaming"),
        multiple=multiple if isinstance(multiple, int) else 1,
        seed=run.get("seed") if run.get("data_seed") is None else run.get("data_seed"),
        epochs=run.get("num_train_epochs"),
        max_steps=run.get("max_steps"),
        drop_last=bool(run.get("dataloader_drop_last")),
    )


def padding(
    run: Run,
    settings: Settings,
    processor: Any,
    family: Family,
    *,
    lengths: NDArray[np.int64],
    image_tokens: NDArray[np.int64],
) -> Padding | None:
    """Returns what fills the micro batches of a run; None where there is no sample.

    Args:
        run: The run.
        settings: How its micro batches are made.
        processor: The model's processor, or its tokenizer for a text-only model.
        family: The model's family.
        lengths: Tokens of each sample, `[samples]`.
        image_tokens: Those of them that stand for images, `[samples]`.
    """
    if not len(lengths):
        return None
    config = load_config(run)
    hidden_size = config.get_text_config().hidden_size
    work = Work(attention=1 / (12 * hidden_size))
    if family.is_vision and image_tokens.any():
        work = work_from(
            _weights(run, config),
            hidden_size=hidden_size,
            patches_per_token=patches_per_token(processor, family),
        )
    return padding_of(Samples(lengths=lengths, image_tokens=image_tokens, work=work), settings)


def _weights(run: Run, config: Any) -> Mapping[str, tuple[int, int]]:
    """Returns for each part of the model the weights that do not train and those that do.

    Adapters are a thousandth of the weights: that there are any is what counts.
    """
    import torch

    auto_class, _ = classes(config, str(config.model_type))
    with torch.device("meta"):
        model = auto_class.from_config(config)
    frozen = set(run.get("freeze") or ())
    found = {}
    for part, parameters in parameters_by_part(model).items():
        count = sum(parameter.numel() for parameter in parameters.values())
        if not run.get("use_peft"):
            found[part] = (count, 0) if part in frozen else (0, count)
        else:
            adapted = part == LANGUAGE_MODEL or bool(run.get("lora_vision"))
            found[part] = count, int(adapted and part not in frozen)
    return found
