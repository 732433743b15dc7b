"""A plan on the terminal: what is needed and when, how long it takes, and why it is so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sailplan.plan.choice.candidates import Candidate
from sailplan.plan.choice.explain import change, fewer, gib
from sailplan.plan.record import Plan
from sailplan.plan.sharding import KINDS, PHASES
from sailplan.sizes import duration, shown_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_METHODS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
_SHOWN_RUNNERS_UP = 5
_BAR = 30


def show(plan: Plan, *, all_candidates: bool = False) -> None:
    """Prints a plan.

    Args:
        plan: The plan.
        all_candidates: Whether every candidate is listed, not the best of each kind alone.
    """
    console = _console()
    card, chosen = plan.card, plan.chosen
    console.print(_title(plan))
    console.print(_verdict(plan))
    console.print(_facts(plan))
    console.print(f"memory of each {card.gpu}, GiB", style="bold")
    console.print(_memory(chosen))
    _lines(console, "why", plan.reasons)
    if plan.changes:
        _lines(console, "what would fit", map(change, plan.changes))
    if plan.faster is not None:
        quicker = 1 - plan.faster.time.step_s / chosen.time.step_s
        _lines(console, "faster", [f"{plan.faster.words}: a step is {quicker:.0%} shorter"])
    others = plan.candidates if all_candidates else plan.runners_up[:_SHOWN_RUNNERS_UP]
    if others:
        console.print("all candidates" if all_candidates else "runners-up", style="bold")
        console.print(_candidates(others, chosen))
    _lines(console, "fewer GPUs", fewer(plan))
    _lines(console, "notes", _notes(plan))


def _title(plan: Plan) -> str:
    card = plan.card
    count = f"{card.gpus_per_node} × " if card.gpus_per_node > 1 else ""
    nodes = f"{card.nodes} nodes of " if card.nodes > 1 else ""
    method = _METHODS.get(plan.method, plan.method)
    return f"{plan.model}: {method} on {nodes}{count}{card.gpu} ({card.reason})"


def _verdict(plan: Plan) -> RenderableType:
    from rich.text import Text

    chosen = plan.chosen
    share = chosen.needed_bytes / chosen.card_bytes
    full = min(_BAR, round(share * _BAR))
    word, colour = ("fits", "green") if chosen.fits else ("does not fit", "red")
    if chosen.tight:
        word, colour = "fits, tight", "yellow"
    text = Text(f"{word}: ", style=f"bold {colour}")
    text.append(chosen.words, style="bold")
    text.append(f"\n{'█' * full}{'░' * (_BAR - full)} ", style=colour)
    text.append(f"{gib(chosen.needed_bytes)} of {gib(chosen.card_bytes)} per GPU ({share:.0%}), ")
    text.append(f"± {chosen.memory.band:.0%}\n")
    text.append(f"{chosen.memory.known}", style="dim")
    return text


def _facts(plan: Plan) -> Table:
    """Two columns of names and values."""
    chosen, data, disk, host = plan.chosen, plan.data, plan.disk, plan.host
    time = chosen.time
    low, high = time.range_s
    table = _table("", "")
    table.add_row(
        "parameters", f"{_count(plan.parameters)}, {_count(plan.trained_parameters)} trained"
    )
    images = ""
    if data.images_per_row:
        size = f"{data.image_width}×{data.image_height}"
        images = f"; {data.images_per_row} image of {size}, {plan.image_tokens} tokens"
    rows = "unknown" if data.rows is None else f"{data.rows:,}"
    table.add_row("rows", f"{rows}; {data.mean:.0f} tokens, the longest {data.longest}{images}")
    table.add_row(
        "global batch",
        f"{plan.global_batch} rows over {chosen.ranks} rank{'' if chosen.ranks == 1 else 's'}",
    )
    table.add_row("micro batch", plan.batching)
    table.add_row("step", f"{duration(time.step_s)}, {duration(low)} to {duration(high)}")
    parts = [f"computing at {time.utilisation:.0%} of the peak"]
    if chosen.ranks > 1:
        parts.append(f"{time.communication_s / time.step_s:.0%} waiting for other ranks")
    if time.offload_s:
        parts.append(f"{time.offload_s / time.step_s:.0%} offload")
    table.add_row("", f"{', '.join(parts)} ({time.regime})")
    table.add_row("speed", f"{plan.tokens_per_s:,.0f} tokens/s over all GPUs")
    if plan.steps is not None:
        steps, total = plan.steps, plan.total_s or 0.0
        length = f"{duration(total / time.band)} to {duration(total * time.band)}"
        of_epoch = ("", "")
        if plan.epoch_s is not None:
            of_epoch = (f" ({steps.per_epoch} an epoch)", f"; an epoch {duration(plan.epoch_s)}")
        table.add_row("steps", f"{steps.total}{of_epoch[0]}")
        table.add_row("run", f"{duration(total)}, {length}{of_epoch[1]}")
    if plan.cost is not None:
        table.add_row("cost", f"{plan.cost:,.2f} at {plan.price_per_hour:g} an hour and GPU")
    offloaded = f", {gib(host.training_bytes)} offloaded" if host.training_bytes else ""
    table.add_row("host memory", f"{gib(host.peak_bytes)} of each machine{offloaded}")
    plural = "" if disk.checkpoints == 1 else "s"
    kept = f"{disk.checkpoints} checkpoint{plural} of {shown_bytes(disk.checkpoint_bytes)}"
    merge = f"; the merge writes {shown_bytes(disk.merge_bytes)}"
    table.add_row("disk", f"{shown_bytes(disk.written_bytes)}: {kept}, and the result{merge}")
    return table


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.2f} million"


def _memory(chosen: Candidate) -> Table:
    """A row for each phase, its peak marked."""
    memory = chosen.memory
    kinds = [kind for kind in KINDS if any(p.get(kind) for p in memory.phases.values())]
    table = _table("phase", *kinds, "all")
    for phase in PHASES:
        if phase not in memory.phases:
            continue
        sizes = memory.phases[phase]
        numbers = [f"{sizes.get(kind, 0) / 2**30:.2f}" if sizes.get(kind) else "" for kind in kinds]
        is_peak = phase == memory.peak_phase
        total = f"{sum(sizes.values()) / 2**30:.2f}{' ◀' if is_peak else '  '}"
        table.add_row(phase, *numbers, total, style="bold" if is_peak else None)
    return table


def _candidates(candidates: Sequence[Candidate], chosen: Candidate) -> Table:
    table = _table("strategy", "micro batch", "checkpointing", "per GPU", "step", "waiting", "")
    for one in candidates:
        word = "tight" if one.tight else "" if one.fits else f"lacks {gib(one.missing_bytes)}"
        table.add_row(
            one.strategy,
            f"{one.micro_batch} × {one.accumulation}",
            "yes" if one.checkpointing else "no",
            gib(one.needed_bytes),
            duration(one.time.step_s),
            f"{one.time.communication_s / one.time.step_s:.0%}",
            "chosen" if one == chosen and one.fits else word,
            style=None if one.fits else "dim",
        )
    return table


def _notes(plan: Plan) -> Iterable[str]:
    yield from plan.notes
    if plan.corrected_by:
        yield f"memory and time are corrected by what {plan.corrected_by} measured"
    if plan.total_s is not None:
        yield "times are without loading, evaluation and saving"


def _lines(console: Console, title: str, lines: Iterable[str]) -> None:
    shown = list(lines)
    if not shown:
        return
    console.print(title, style="bold")
    for line in shown:
        console.print(f"  {line}")


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for number in range(1, len(columns)) if any(columns) else ():
        table.columns[number].justify = "right"
    return table


def _console() -> Console:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console
