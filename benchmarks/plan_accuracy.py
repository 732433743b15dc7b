"""Predicted GPU memory beside what others measured, row by row.

    python benchmarks/plan_accuracy.py [--json FILE] [--table FILE]

Each row of `memory_measured.csv` becomes a `Workload` and a `Sharding`, and goes the way that
`sailplan plan` goes. A row is left out for a reason that is printed, never because it is wrong.
Exit 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sailplan.model.published import published
from sailplan.plan.memory import shard
from sailplan.plan.sharding import GIB, Sharding
from sailplan.plan.simulate import simulate
from sailplan.plan.workload import Adapter, Images, Workload

TABLE = Path(__file__).with_name("memory_measured.csv")
MODELS = {
    "meta-llama/Meta-Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    "Llama 3.2 3B": "meta-llama/Llama-3.2-3B",
    "Llama 3.1 8B": "meta-llama/Llama-3.1-8B",
    "Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen2.5-7B": "Qwen/Qwen2.5-7B",
    "LLaMA-13B": "huggyllama/llama-13b",
    "Qwen2-VL-7B": "Qwen/Qwen2-VL-7B-Instruct",
}
"""How the table writes models that it does not name as the hub does."""
MEDIAN_AIM, MOST_AIM, WORST_AIM = 0.03, 0.07, 0.15


def out_of_scope(row: Mapping[str, str]) -> str:
    """Returns why a row says nothing about sailplan's runs; empty where it does."""
    text = " ".join(row.values()).lower()
    for word, reason in (
        ("torchao", "quantised by torchao"),
        ("optimizer in backward", "optimizer in backward"),
        ("compile", "torch.compile"),
        ("+offload", "activations offloaded to the host"),
        ("lora-fa", "LoRA-FA, which PEFT's LoRA is not"),
        ("pretrain", "not run by accelerate: its own float32 FSDP2 loop, selective checkpointing"),
        ("upper bound only", "an upper bound, compared below"),
        ("transposed copy", "bitsandbytes of 2023 kept a second copy, compared below"),
    ):
        if word in text:
            return reason
    return ""


def workload_of(row: Mapping[str, str]) -> Workload:
    """Returns the micro batch of a row of the table."""
    name = MODELS.get(row["model"], row["model"])
    model = published(name)
    if model is None:
        raise SystemExit(f"{row['id']}: no config of {name}")
    half = "float16" if "fp16" in row["dtype"] else "bfloat16"
    length = int(re.search(r"\d+", row["seq_len"])[0])  # type: ignore[index]
    words = row["loss_impl"].lower()
    loss = (
        "liger"
        if words.startswith("liger")
        else "full_shifted"
        if "shift copy" in words
        else "full_kept"
        if "kept alive" in words
        else "chunked"
        if "chunked" in words
        else "full"
    )
    adapter = None
    if "lora" in row["method"]:
        parts = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"} | {
            name: f"{name}_proj" for name in ("up", "gate", "down")
        }
        wanted = row["targets"].split(",")
        targets: Any = "all-linear" if wanted == ["all-linear"] else tuple(parts[w] for w in wanted)
        adapter = Adapter(rank=int(row["lora_r"]), targets=targets)
    optimizer = row["optimizer"].lower()
    return Workload(
        config=model.config,
        micro_batch=int(row["micro_batch"]),
        length_tokens=length,
        weights=half,
        autocast=half if adapter and "no autocast" not in row["dtype"] else None,
        adapter=adapter,
        checkpointing="reentrant" if row["grad_ckpt"] == "yes" else "none",
        attention="flash_attention_2" if "flash" in row["attn"] else "sdpa",
        loss=loss,  # type: ignore[arg-type]
        padded="bucketed" in row["seq_len"],
        optimizer="adamw_torch" if "foreach" in optimizer else "adamw_torch_fused",
    )


def sharding_of(row: Mapping[str, str]) -> Sharding:
    """Returns how a row's run was divided."""
    words, ranks = row["zero_or_fsdp"], int(row["gpus"])
    kind = re.match(r"zero3|zero2|fsdp2|ddp|none|", words)[0]  # type: ignore[index]
    strategy = {"none": "single", "": "single"}.get(kind, kind)
    auto = "hf-auto" in words
    model = published(MODELS.get(row["model"], row["model"]))
    width = int(model.config["hidden_size"]) if auto and model else 0
    return Sharding(
        strategy=strategy,  # type: ignore[arg-type]
        ranks=ranks,
        ranks_per_node=min(ranks, 8),
        reduce_bucket=width * width or None,
        zero_init=not row["id"].startswith("gpjt"),  # its scripts load the model first
        offload_optimizer="offload" in words,
    )


def kind_of(row: Mapping[str, str]) -> str:
    """Returns `allocated`, `reserved` or `driver`."""
    words = row["measure_kind"]
    if "active" in words or "allocated" in words:
        return "allocated"
    return "driver" if "nvidia" in words else "reserved"


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    profiles: dict[str, Any] = {}
    found, left_out = [], []
    for row in csv.DictReader(arguments.table.open(encoding="utf-8")):
        if arguments.only not in row["id"]:
            continue
        reason = out_of_scope(row)
        if reason:
            left_out.append((row["id"], reason))
            continue
        workload, sharding = workload_of(row), sharding_of(row)
        key = workload.key()
        profiles[key] = profiles.get(key) or simulate(workload)
        memory = shard(profiles[key], workload, sharding)
        predicted = memory.peak_bytes / GIB
        measured, kind = float(row["measured_gib"]), kind_of(row)
        error = predicted / measured - 1
        found.append({"id": row["id"], "kind": kind, "predicted": predicted, "measured": measured,
                      "error": error, "phase": memory.peak_phase})
        print(f"{row['id']:32} {kind:10} {predicted:7.2f} {measured:7.2f} {error:+7.1%} {memory.peak_phase} {memory.moments[memory.peak_phase]}")
        if arguments.verbose:
            print({k: round(v / GIB, 2) for k, v in memory.phases[memory.peak_phase].items()})
    for name, reason in left_out:
        print(f"{name:32} out of scope: {reason}")
    errors = [abs(r["error"]) for r in found if r["kind"] == "allocated"]
    if errors:
        within = sum(e <= MOST_AIM for e in errors) / len(errors)
        print(f"allocated: median {statistics.median(errors):.1%}, within 7 %: {within:.0%}, worst {max(errors):.1%} of {len(errors)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
