"""The model of a workload, as it stands when training begins: quantised, frozen, adapted."""

from __future__ import annotations

from typing import Any

from sailplan.errors import ModelError
from sailplan.plan.workload import Adapter, Workload


def fake_copy(model: Any, fake: Any) -> Any:
    """Gives a model on the meta device fake tensors for its own, tied ones once; returns it."""
    import torch

    made: dict[int, Any] = {}
    with fake:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is None or tensor.device.type != "meta":
                        continue
                    if id(tensor) not in made:
                        empty: Any = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                        if isinstance(tensor, torch.nn.Parameter):
                            empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                        made[id(tensor)] = empty
                    held[name] = made[id(tensor)]
    return model


def build(workload: Workload, config: Any) -> Any:
    """Returns the model on the meta device.

    Args:
        workload: The workload.
        config: Its model's config, of any depth.

    Raises:
        ModelError: transformers has no such model, or PEFT refuses the adapter.
    """
    import torch
    from transformers.initialization import no_init_weights

    from sailplan.model.freezing import run_frozen_vision_without_autograd
    from sailplan.model.load import classes
    from sailplan.model.parts import parameters_by_part
    from sailplan.model.trainable import freeze_unused
    from sailplan.plan.simulation.attention import by_segment

    auto_class, model_class = classes(config, str(config.model_type))
    attention = "eager" if workload.attention == "eager" else "sdpa"
    if not getattr(model_class, "_supports_sdpa", True):
        attention = "eager"
    with torch.device("meta"), no_init_weights():
        model = auto_class.from_config(
            config, dtype=getattr(torch, workload.weights), attn_implementation=attention
        )
    if workload.segments is not None:
        by_segment(model, flash=workload.attention != "sdpa")
    model.tie_weights()
    if workload.quantization:
        from sailplan.plan.simulation.stand_in import quantise

        quantise(model, workload.quantization, double=workload.double_quantization)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    wrapped = _adapted(model, workload, workload.adapter) if workload.adapter else model
    parts = parameters_by_part(wrapped)
    for part in workload.frozen:
        for parameter in parts.get(part, {}).values():
            parameter.requires_grad_(False)
    freeze_unused(wrapped)
    run_frozen_vision_without_autograd(wrapped)
    if workload.checkpointing != "none":
        reentrant = workload.checkpointing == "reentrant"
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if workload.adapter or reentrant:
            model.enable_input_require_grads()
    wrapped.train()
    return wrapped


def _adapted(model: Any, workload: Workload, adapter: Adapter) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    from sailplan.model.families import family_of
    from sailplan.model.parts import parameters_by_part
    from sailplan.model.targets import target_modules

    targets = target_modules(
        model,
        adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets),
        vision=adapter.vision,
        unused=family_of(model.config).unused_parameters(model),
        frozen=frozenset(workload.frozen) & parameters_by_part(model).keys(),
    )
    config = LoraConfig(
        r=adapter.rank,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        use_dora=adapter.dora,
        rank_pattern=dict(adapter.rank_pattern),
        modules_to_save=list(adapter.modules_to_save) or None,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.device("meta"):
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, TypeError) as error:
        raise ModelError(f"PEFT refuses the LoRA settings: {error}") from error
    dtype = getattr(torch, adapter.dtype)
    for module in wrapped.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and parameter.dtype != dtype:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().to(dtype))
    return wrapped
