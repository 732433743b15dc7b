"""The families of the matrix by their public names: where each is on the hub, and how to start.

What a family is to training follows from its config (`sailplan.model.families`) and is not said
here again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One family as its users know it."""

    title: str
    """What it is called."""
    hub: str
    """Its repositories on the hub, `*` for what differs."""
    models: tuple[str, ...]
    """Public ones that plans know, the smallest first; see `sailplan.model.published`."""
    start: str
    """The run file of launch/ to start from, by name."""
    quirks: tuple[str, ...] = ()
    """What a user should know that neither config nor processor says, in sentences."""


_NO_EXPERTS = (
    "LoRA and QLoRA adapt the attention alone, and bitsandbytes leaves the experts, which are most "
    "of the weights, in 16 bits.",
)

LINEUP: dict[str, Member] = {
    "qwen2_vl": Member(
        title="Qwen2-VL",
        hub="Qwen/Qwen2-VL-*",
        models=tuple(f"Qwen/Qwen2-VL-{size}-Instruct" for size in ("2B", "7B", "72B")),
        start="qwen2_vl_7b-qlora-1x24gb",
    ),
    "qwen2_5_vl": Member(
        title="Qwen2.5-VL",
        hub="Qwen/Qwen2.5-VL-*",
        models=tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")),
        start="qwen2_5_vl_7b-qlora-1x24gb",
    ),
    "qwen3_vl": Member(
        title="Qwen3-VL",
        hub="Qwen/Qwen3-VL-*",
        models=tuple(f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("4B", "8B", "30B-A3B")),
        start="qwen3_vl_8b-qlora-1x24gb",
    ),
    "llava": Member(
        title="LLaVA-1.5",
        hub="llava-hf/llava-1.5-*-hf",
        models=tuple(f"llava-hf/llava-1.5-{size}-hf" for size in ("7b", "13b")),
        start="llava_1_5_7b-qlora-1x24gb",
    ),
    "llava_next": Member(
        title="LLaVA-NeXT",
        hub="llava-hf/llava-v1.6-*-hf",
        models=tuple(f"llava-hf/llava-v1.6-{size}-hf" for size in ("mistral-7b", "vicuna-13b")),
        start="llava_1_6_mistral_7b-qlora-1x24gb",
    ),
    "llava_onevision": Member(
        title="LLaVA-OneVision",
        hub="llava-hf/llava-onevision-qwen2-*-hf",
        models=tuple(f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for size in ("0.5b", "7b")),
        start="llava_onevision_7b-qlora-1x24gb",
        quirks=("Only a picture that is alone in its sample is cut into tiles.",),
    ),
    "pixtral": Member(
        title="Pixtral",
        hub="mistral-community/pixtral-12b",
        models=("mistral-community/pixtral-12b",),
        start="pixtral_12b-qlora-1x24gb",
    ),
    "mllama": Member(
        title="Llama-3.2-Vision",
        hub="meta-llama/Llama-3.2-*-Vision*",
        models=tuple(f"meta-llama/Llama-3.2-{size}-Vision-Instruct" for size in ("11B", "90B")),
        start="llama_3_2_11b_vision-qlora-1x24gb",
        quirks=("Its chat template takes no system text beside a picture.",),
    ),
    "idefics3": Member(
        title="Idefics3, SmolVLM",
        hub="HuggingFaceM4/Idefics3-*, HuggingFaceTB/SmolVLM-*",
        models=(
            "HuggingFaceTB/SmolVLM-256M-Instruct",
            "HuggingFaceTB/SmolVLM-Instruct",
            "HuggingFaceM4/Idefics3-8B-Llama3",
        ),
        start="idefics3_8b-qlora-1x24gb",
    ),
    "smolvlm": Member(
        title="SmolVLM2",
        hub="HuggingFaceTB/SmolVLM2-*",
        models=tuple(f"HuggingFaceTB/SmolVLM2-{size}-Instruct" for size in ("500M-Video", "2.2B")),
        start="smolvlm2_2_2b-lora-1x24gb",
    ),
    "gemma3": Member(
        title="Gemma-3",
        hub="google/gemma-3-*",
        models=tuple(f"google/gemma-3-{size}-it" for size in ("4b", "12b", "27b")),
        start="gemma_3_4b-qlora-1x24gb",
    ),
    "internvl": Member(
        title="InternVL3",
        hub="OpenGVLab/InternVL3-*-hf",
        models=tuple(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B")),
        start="internvl3_8b-qlora-1x24gb",
        quirks=("Repositories without -hf hold code of their own, which is not read.",),
    ),
    "molmo2": Member(
        title="Molmo2",
        hub="allenai/Molmo2-*",
        models=tuple(f"allenai/Molmo2-{size}" for size in ("4B", "8B")),
        start="molmo2_8b-qlora-1x24gb",
    ),
    "paligemma": Member(
        title="PaliGemma",
        hub="google/paligemma-*, google/paligemma2-*",
        models=("google/paligemma-3b-pt-448",),
        start="paligemma_3b-lora-1x24gb",
        quirks=("Every row needs a picture: rows of text alone are refused.",),
    ),
    "mistral3": Member(
        title="Mistral-Small-3.1",
        hub="mistralai/Mistral-Small-3.1-24B-*",
        models=("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
        start="mistral_small_3_1_24b-qlora-1x24gb",
    ),
    "llama": Member(
        title="Llama",
        hub="meta-llama/Llama-*, HuggingFaceTB/SmolLM2-*, huggyllama/llama-*",
        models=tuple(f"meta-llama/Llama-{size}" for size in ("3.2-1B", "3.1-8B", "3.1-70B")),
        start="llama_3_1_8b-qlora-1x24gb",
    ),
    "qwen3": Member(
        title="Qwen3",
        hub="Qwen/Qwen3-*B",
        models=tuple(f"Qwen/Qwen3-{size}" for size in ("0.6B", "8B", "32B")),
        start="qwen3_8b-qlora-1x24gb",
    ),
    "mistral": Member(
        title="Mistral",
        hub="mistralai/Mistral-7B-*",
        models=("mistralai/Mistral-7B-v0.3",),
        start="mistral_7b-qlora-1x24gb",
    ),
    "gemma3_text": Member(
        title="Gemma-3, text",
        hub="google/gemma-3-270m-*, google/gemma-3-1b-*",
        models=("google/gemma-3-1b-it",),
        start="gemma_3_1b-full-1x24gb",
    ),
    "qwen3_moe": Member(
        title="Qwen3, experts",
        hub="Qwen/Qwen3-*-A3B",
        models=("Qwen/Qwen3-30B-A3B",),
        start="qwen3_30b_a3b-lora-1xh100",
        quirks=_NO_EXPERTS,
    ),
}
"""By `Family.name`, in the order of the matrix."""
