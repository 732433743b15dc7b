"""What a run was, as names and values for people: model, data, method, hardware, versions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sailplan.plan.record import Plan
from sailplan.report.reading import mapping_of
from sailplan.report.record import Fact
from sailplan.run.config import Run
from sailplan.run.method import AUTO, MICRO_BATCH, method_of
from sailplan.run.secrets import is_secret
from sailplan.sizes import shown_bytes
from sailplan.supervise.attempt_log import Attempt

_METHODS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", AUTO: "left to the plan"}

_COMMIT = re.compile(r"[0-9a-f]{40}")

Pair = tuple[str, Any]
"""The name and the value of a fact; None and empty values are none."""


def facts_of(
    run: Run | None,
    *,
    plan: Plan | None,
    environment: Mapping[str, Any],
    revisions: Sequence[Any],
    last: Attempt | None,
) -> tuple[Fact, ...]:
    """Returns what is known of a run; nothing that is, or may be, a secret.

    Args:
        run: The run as its directory has it.
        plan: Its plan.
        environment: Its record of versions and hardware, as JSON has it.
        revisions: Its record of repositories and commits, as JSON has it.
        last: Its last launch that has ended.
    """
    processes = environment.get("processes")
    ranks = processes if type(processes) is int else last.processes if last else None
    groups: dict[str, Iterator[Pair]] = {
        "model": _model(run, plan, revisions),
        "data": _data(run, revisions),
        "method": _method(run, plan),
        "training": _training(run, plan, last, ranks),
        "hardware": _hardware(environment, last, ranks),
        "versions": _versions(environment),
    }
    facts = (
        Fact(name=name, value=_shown(value), group=group)
        for group, pairs in groups.items()
        for name, value in pairs
        if value not in (None, "", [], {})
    )
    return tuple(fact for fact in facts if not is_secret(fact.name, fact.value))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return str(value)


def _model(run: Run | None, plan: Plan | None, revisions: Sequence[Any]) -> Iterator[Pair]:
    if run is not None:
        name = run.get("model_name_or_path")
        yield "model", name
        yield "revision", _revision(run.get("model_revision"), name, revisions)
        yield "processor", run.get("processor_name_or_path")
        yield "attention", run.get("attn_implementation")
        yield "pixels of an image", _pixels(run)
    elif plan is not None:
        yield "model", plan.model
    if plan is not None:
        yield "parameters", _count(plan.parameters)


def _data(run: Run | None, revisions: Sequence[Any]) -> Iterator[Pair]:
    if run is None:
        return
    entries = run.get("datasets")
    if entries:
        yield "data", [str(entry.get("path")) for entry in entries if isinstance(entry, dict)]
    else:
        name = run.get("dataset_name")
        yield "data", name
        yield "config", run.get("dataset_config")
        yield "revision", _revision(run.get("dataset_revision"), name, revisions)
    written = run.get("dataset_format")
    yield "format", written if written != AUTO else None
    yield "held out", _held_out(run.get("eval_size"))
    yield "streamed", run.get("dataset_streaming") or None
    limit = run.get("max_length")
    yield "most tokens of a sample", f"{limit:,}" if type(limit) is int else None
    yield "batching", "pack" if run.get("packing") else run.get("batching")


def _held_out(size: float | None) -> str | None:
    if not size:
        return None
    return f"{size:.3g} of the rows" if size < 1 else f"{size:,.0f} rows"


def _method(run: Run | None, plan: Plan | None) -> Iterator[Pair]:
    method = plan.method if plan is not None else method_of(run) if run is not None else None
    yield "method", _METHODS.get(method or "", method)
    if run is not None:
        if method in ("lora", "qlora"):
            yield "rank", run.get("lora_r")
            yield "alpha", run.get("lora_alpha")
            yield "dropout", run.get("lora_dropout")
            yield "targets", run.get("lora_target_modules")
            yield "vision tower adapted", run.get("lora_vision") or None
        if run.get("load_in_4bit"):
            nested = ", quantised twice" if run.get("use_bnb_nested_quant") else ""
            yield "quantised", f"{run.get('bnb_4bit_quant_type')}{nested}"
        elif run.get("load_in_8bit"):
            yield "quantised", "int8"
        yield "weights", run.get("dtype")
        yield "frozen", run.get("freeze")
    if plan is not None:
        share = plan.trained_parameters / max(1, plan.parameters)
        yield "trained parameters", f"{_count(plan.trained_parameters)} ({share:.2%})"


def _training(
    run: Run | None, plan: Plan | None, last: Attempt | None, ranks: int | None
) -> Iterator[Pair]:
    if run is None:
        return
    yield "batch", _batch(run, plan, last, ranks)
    if run.get("max_steps") > 0:
        yield "steps", f"{run.get('max_steps'):,}"
    else:
        yield "epochs", float(run.get("num_train_epochs"))
    yield "learning rate", run.get("learning_rate")
    yield "learning rate of the vision tower", run.get("vision_tower_learning_rate")
    yield "learning rate of the projector", run.get("projector_learning_rate")
    warm = run.get("warmup_steps")
    yield "schedule", f"{run.get('lr_scheduler_type')}{f', warmup {warm:g}' if warm else ''}"
    yield "optimizer", run.get("optim")
    yield "weight decay", run.get("weight_decay") or None
    yield "clipping", run.get("max_grad_norm")
    yield "precision", _precision(run)
    checkpointing = run.get("gradient_checkpointing")
    if plan is not None and not run.is_set("gradient_checkpointing"):
        checkpointing = plan.chosen.checkpointing
    yield "gradient checkpointing", bool(checkpointing)
    yield "loss on", "the assistant's words" if run.get("assistant_only_loss") else "all text"
    yield "seed", run.get("seed")


def _batch(run: Run, plan: Plan | None, last: Attempt | None, ranks: int | None) -> str | None:
    """Returns the rows of a step, and what they are divided into."""
    micro, accumulation = run.get(MICRO_BATCH), run.get("gradient_accumulation_steps")
    if last is not None:
        micro, accumulation = last.micro_batch, last.accumulation
    elif plan is not None:
        micro, accumulation = plan.chosen.micro_batch, plan.chosen.accumulation
    ranks = ranks or (plan.chosen.ranks if plan is not None else None)
    if not (isinstance(micro, int) and isinstance(accumulation, int) and isinstance(ranks, int)):
        wanted = run.get("global_batch_size")
        return f"{wanted} rows" if wanted else None
    divided = f"micro batch {micro} × accumulation {accumulation} × {ranks} rank{'s' * (ranks > 1)}"
    return f"{micro * accumulation * ranks} rows: {divided}"


def _precision(run: Run) -> str | None:
    if run.get("bf16"):
        return "bfloat16"
    if run.get("fp16"):
        return "float16"
    # Where nothing is written the device decides, and no file of the run says how it did.
    return "float32" if run.is_set("bf16") else None


def _pixels(run: Run) -> str | None:
    least, most = run.get("min_pixels"), run.get("max_pixels")
    parts = [f"{word} {value:,}" for word, value in (("from", least), ("to", most)) if value]
    return " ".join(parts) or None


def _hardware(
    environment: Mapping[str, Any], last: Attempt | None, ranks: int | None
) -> Iterator[Pair]:
    machine = mapping_of(environment.get("machine"))
    found = {name: mapping_of(machine.get(name)).get("value") for name in machine}
    names: dict[str, int] = {}
    gpus = found.get("gpus")
    for gpu in gpus if isinstance(gpus, list) else ():
        size = mapping_of(gpu).get("memory_bytes")
        name = f"{mapping_of(gpu).get('name')}"
        name += f" ({shown_bytes(size)})" if type(size) is int else ""
        names[name] = names.get(name, 0) + 1
    trained_on_cpu = last is not None and last.device == "cpu"
    if names and not trained_on_cpu:
        yield "GPUs", [f"{count} × {name}" for name, count in names.items()]
    elif found:
        yield "GPUs", "none, trained on the CPU"
    cores = found.get("cpu_cores")
    yield "CPU cores", cores if type(cores) is int else None
    size = found.get("memory_bytes")
    yield "memory of the machine", shown_bytes(size) if type(size) is int else None
    yield "ranks", ranks
    strategy = environment.get("strategy")
    yield "strategy", strategy if isinstance(strategy, str) else last and last.strategy


def _versions(environment: Mapping[str, Any]) -> Iterator[Pair]:
    commit = mapping_of(environment.get("commit"))
    if isinstance(commit.get("hash"), str):
        changed = ", with changes that are not committed" if commit.get("dirty") else ""
        yield "commit", f"{commit['hash']}{changed}"
    for name in ("sailplan", "python", "platform"):
        yield name, _word(environment.get(name))
    for name, version in mapping_of(environment.get("packages")).items():
        yield name, _word(version)


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _revision(written: Any, name: Any, revisions: Sequence[Any]) -> str | None:
    """Returns the commit that a repository was at, and the branch that was asked for."""
    for pin in map(mapping_of, revisions):
        if pin.get("name") == name and isinstance(pin.get("commit"), str):
            asked = pin.get("revision")
            of = f" ({asked})" if isinstance(asked, str) and asked != pin["commit"] else ""
            return f"{pin['commit']}{of}"
    return written if isinstance(written, str) and _COMMIT.fullmatch(written) else None


def _count(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {name}"
    return f"{number:,}"
