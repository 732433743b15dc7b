"""Translates names of old into those of today.

Each translation makes one note. A name that the installed libraries still know is never translated.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from sailplan.errors import RunFileError
from sailplan.run.legacy_names import GONE, RENAMED
from sailplan.run.values import Entry, Raw, Scalar, plain, scalar, shown

_ALPACA = {
    "micro_batch_size",
    "cutoff_len",
    "val_set_size",
    "train_on_inputs",
    "prompt_template_name",
    "lora_r",
    "lora_target_modules",
}

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}


@dataclass(kw_only=True, slots=True)
class _Outcome:
    """What one legacy setting becomes."""

    settings: dict[str, Raw] = field(default_factory=dict)
    weak: dict[str, Raw] = field(default_factory=dict)
    """Settings that give way to written ones."""
    env: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Translated:
    """Settings in today's names."""

    entries: tuple[Entry, ...]
    env: Mapping[str, str]
    notes: tuple[str, ...]


def legacy_names() -> frozenset[str]:
    """Returns every name that is translated."""
    return frozenset(RENAMED) | frozenset(GONE) | frozenset(_REWRITTEN)


def translate(entries: Sequence[Entry], known: Container[str]) -> Translated:
    """Returns the settings in today's names, with one note for each that was translated.

    Args:
        entries: Settings of one file or one command line.
        known: The names that are valid today; they are left alone.

    Raises:
        RunFileError: An old and a new name are both written, and differ.
    """
    kept = {entry.name: entry for entry in entries}
    env: dict[str, str] = {}
    notes: list[str] = []
    for entry in entries:
        outcome = None if entry.name in known else _outcome(entry)
        if outcome is None:
            continue
        del kept[entry.name]
        env |= outcome.env
        note = f"{entry.where}: {entry.name} {outcome.note}"
        for name, raw in outcome.settings.items():
            _refuse_two_values(entry, name, raw, kept)
            kept[name] = Entry(name=name, raw=raw, where=entry.where)
        for name, raw in outcome.weak.items():
            if name in kept and str(plain(kept[name].raw)) not in ("0", "0.0"):
                note += f" ({name} is written too, and wins)"
            else:
                kept[name] = Entry(name=name, raw=raw, where=entry.where)
        notes.append(note)
    _imply_lora(entries, kept, notes, known)
    return Translated(entries=tuple(kept.values()), env=env, notes=tuple(notes))


def _outcome(entry: Entry) -> _Outcome | None:
    """Returns what an old name becomes, None where the name is none of them."""
    if entry.name in RENAMED:
        new = RENAMED[entry.name]
        return _Outcome(settings={new: entry.raw}, note=f"is now {new}")
    if entry.name in GONE:
        return _Outcome(note=f"is gone: {GONE[entry.name]}")
    rewrite = _REWRITTEN.get(entry.name)
    return rewrite(entry) if rewrite else None


def _refuse_two_values(entry: Entry, name: str, raw: Raw, kept: Mapping[str, Entry]) -> None:
    other = kept.get(name)
    if other is None or str(plain(other.raw)).lower() == str(plain(raw)).lower():
        return
    got = (
        f"{entry.where}: {entry.name} (now {name}) is {shown(raw, name)}, "
        f"but {name} is {shown(other.raw, name)} ({other.where})"
    )
    raise RunFileError(got, todo=f"keep {name}")


def _imply_lora(
    entries: Sequence[Entry], kept: dict[str, Entry], notes: list[str], known: Container[str]
) -> None:
    """Sets `use_peft` for Alpaca-LoRA's flags, which know no other way to train."""
    written = {entry.name: entry for entry in entries}
    if "base_model" in known or "base_model" not in written or "use_peft" in kept:
        return
    if not _ALPACA & written.keys():
        return
    where = written["base_model"].where
    kept["use_peft"] = Entry(name="use_peft", raw=scalar(True), where=where)
    notes.append(
        f"{where}: Alpaca-LoRA's flags train LoRA: use_peft is true (load_in_8bit, fp16 and "
        "warmup_steps, which finetune.py fixes, are yours to write)"
    )


def _true(entry: Entry) -> bool:
    word = str(plain(entry.raw)).lower()
    if word in ("true", "yes", "1", "on"):
        return True
    if word in ("false", "no", "0", "off", "none", ""):
        return False
    raise RunFileError(
        f"{entry.where}: {entry.name} is {shown(entry.raw)}", allowed="true or false"
    )


def _text(entry: Entry) -> str:
    if not isinstance(entry.raw, Scalar):
        raise RunFileError(
            f"{entry.where}: {entry.name} is {shown(entry.raw)}", allowed="one value"
        )
    return "" if entry.raw.value is None else entry.raw.text.strip()


def _dtype(entry: Entry) -> Raw:
    word = _text(entry).removeprefix("torch.")
    return scalar(_DTYPES.get(word, word))


def _torch_dtype(entry: Entry) -> _Outcome:
    return _Outcome(settings={"dtype": _dtype(entry)}, note="is now dtype")


def _compute_dtype(entry: Entry) -> _Outcome:
    return _Outcome(weak={"dtype": _dtype(entry)}, note="is now dtype: computation is in dtype")


def _warmup_ratio(entry: Entry) -> _Outcome:
    try:
        ratio = float(_text(entry) or 0)
    except ValueError:
        ratio = -1
    if not 0 <= ratio < 1:
        got = f"{entry.where}: warmup_ratio is {shown(entry.raw)}"
        raise RunFileError(got, allowed="0 or more and below 1")
    note = "is now warmup_steps: a number below 1 is a share of all steps"
    return _Outcome(weak={"warmup_steps": entry.raw}, note=note)


def _group_by_length(entry: Entry) -> _Outcome:
    note = "is now train_sampling_strategy: group_by_length"
    chosen = {"train_sampling_strategy": scalar("group_by_length")} if _true(entry) else {}
    return _Outcome(settings={**chosen}, note=note)


def _logging_dir(entry: Entry) -> _Outcome:
    note = "is now the environment variable TENSORBOARD_LOGGING_DIR, which is set"
    return _Outcome(env={"TENSORBOARD_LOGGING_DIR": _text(entry)}, note=note)


def _batch_size(entry: Entry) -> _Outcome:
    note = (
        "is now global_batch_size, the samples of one optimizer step over all ranks, as in "
        "Alpaca-LoRA (one rank's share is per_device_train_batch_size)"
    )
    return _Outcome(settings={"global_batch_size": entry.raw}, note=note)


def _cutoff_len(entry: Entry) -> _Outcome:
    return _Outcome(
        settings={"max_length": entry.raw},
        weak={"over_length": scalar("truncate_text")},
        note="is now max_length, with over_length: truncate_text",
    )


def _val_set_size(entry: Entry) -> _Outcome:
    held_out: dict[str, Raw] = {} if _text(entry) in ("0", "") else {"eval_size": entry.raw}
    return _Outcome(settings=held_out, note="is now eval_size")


def _train_on_inputs(entry: Entry) -> _Outcome:
    note = "is now assistant_only_loss, its opposite"
    return _Outcome(settings={"assistant_only_loss": scalar(not _true(entry))}, note=note)


def _wandb_project(entry: Entry) -> _Outcome:
    project = _text(entry)
    note = "is now the environment variable WANDB_PROJECT, with report_to: wandb"
    if not project:
        return _Outcome(note=note)
    return _Outcome(env={"WANDB_PROJECT": project}, weak={"report_to": scalar("wandb")}, note=note)


def _wandb_run_name(entry: Entry) -> _Outcome:
    name: dict[str, Raw] = {"run_name": entry.raw} if _text(entry) else {}
    return _Outcome(settings=name, note="is now run_name")


def _wandb_variable(entry: Entry) -> _Outcome:
    variable, value = entry.name.upper(), _text(entry)
    note = f"is now the environment variable {variable}"
    return _Outcome(env={variable: value} if value else {}, note=note)


def _flash_attention(entry: Entry) -> _Outcome:
    chosen = {"attn_implementation": scalar("flash_attention_2")} if _true(entry) else {}
    return _Outcome(settings={**chosen}, note="is now attn_implementation: flash_attention_2")


def _auth_token(entry: Entry) -> _Outcome:
    if _text(entry).lower() in ("true", "false", ""):
        return _Outcome(note="is gone: the token of `hf auth login` is used where one is needed")
    return _Outcome(settings={"hub_token": entry.raw}, note="is now hub_token")


def _use_reentrant(entry: Entry) -> _Outcome:
    kwargs: Raw = {"use_reentrant": scalar(_true(entry))}
    return _Outcome(
        settings={"gradient_checkpointing_kwargs": kwargs},
        note="is now gradient_checkpointing_kwargs: {use_reentrant: …}",
    )


def _adafactor(entry: Entry) -> _Outcome:
    chosen = {"optim": scalar("adafactor")} if _true(entry) else {}
    return _Outcome(settings={**chosen}, note="is now optim: adafactor")


_REWRITTEN: Mapping[str, Callable[[Entry], _Outcome]] = {
    "torch_dtype": _torch_dtype,
    "bnb_4bit_compute_dtype": _compute_dtype,
    "warmup_ratio": _warmup_ratio,
    "group_by_length": _group_by_length,
    "logging_dir": _logging_dir,
    "batch_size": _batch_size,
    "cutoff_len": _cutoff_len,
    "val_set_size": _val_set_size,
    "train_on_inputs": _train_on_inputs,
    "wandb_project": _wandb_project,
    "wandb_run_name": _wandb_run_name,
    "wandb_watch": _wandb_variable,
    "wandb_log_model": _wandb_variable,
    "use_flash_attention_2": _flash_attention,
    "use_flash_attn": _flash_attention,
    "use_auth_token": _auth_token,
    "gradient_checkpointing_use_reentrant": _use_reentrant,
    "adafactor": _adafactor,
}
