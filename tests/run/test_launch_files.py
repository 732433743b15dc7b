"""The documented run files say what their sources say, and all others the same."""

from __future__ import annotations

import pytest

from sailplan.files import folder
from sailplan.model.published import published
from sailplan.run.config import Run
from sailplan.run.method import METHODS

ARTICLE_PROMPT = (
    "Create a Short Product description based on the provided ##PRODUCT NAME## and ##CATEGORY## "
    "and image. \n"
    "Only return description. The description should be SEO optimized and for a better mobile "
    "search experience.\n\n"
    "##PRODUCT NAME##: {Product Name}\n##CATEGORY##: {Category}"
)

ALPACA = {
    "load_in_8bit": True,
    "dtype": "float16",
    "use_peft": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_bias": "none",
    "lora_target_modules": ["q_proj", "v_proj"],
    "dataset_name": "yahma/alpaca-cleaned",
    "dataset_format": "alpaca",
    "alpaca_template": "alpaca",
    "eval_size": 2000.0,
    "max_length": 512,
    "over_length": "truncate_text",
    "assistant_only_loss": False,
    "train_sampling_strategy": "group_by_length",
    "global_batch_size": 128,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 3.0,
    "learning_rate": 1e-4,
    "warmup_steps": 100.0,
    "optim": "adamw_torch",
    "fp16": True,
    "bf16": False,
    "gradient_checkpointing": True,
    "ddp_find_unused_parameters": False,
    "logging_steps": 10.0,
    "eval_strategy": "steps",
    "eval_steps": 200.0,
    "save_strategy": "steps",
    "save_steps": 200.0,
    "save_total_limit": 3,
    "load_best_model_at_end": True,
}

LLAVA = {
    "model_name_or_path": "llava-hf/llava-1.5-7b-hf",
    "dtype": "bfloat16",
    "dataset_name": "HuggingFaceH4/llava-instruct-mix-vsft",
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "bf16": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}

ARTICLE = {
    "model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct",
    "dtype": "bfloat16",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": True,
    "use_peft": True,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_bias": "none",
    "lora_target_modules": ["q_proj", "v_proj"],
    "lora_task_type": "CAUSAL_LM",
    "dataset_name": "philschmid/amazon-product-descriptions-vlm",
    "dataset_train_split": "train",
    "dataset_format": "template",
    "system_prompt": "You are an expert product description writer for Amazon.",
    "user_prompt": ARTICLE_PROMPT + "{image}",
    "answer_column": "description",
    "image_columns": ["image"],
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0.03,
    "max_grad_norm": 0.3,
    "optim": "adamw_torch_fused",
    "bf16": True,
    "tf32": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "logging_steps": 5.0,
    "save_strategy": "epoch",
    "report_to": "tensorboard",
    "output_dir": "runs/qwen2_vl_7b-qlora-amazon",
}

ONE_AT_A_TIME = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 32}


def article(model: str, name: str, **changes: object) -> dict[str, object]:
    """The article's values with another model, and what that model needs otherwise."""
    kept = {key: value for key, value in ARTICLE.items() if changes.get(key, 0) is not None}
    changed = {key: value for key, value in changes.items() if value is not None}
    names = {"model_name_or_path": model, "output_dir": f"runs/{name}-qlora-amazon"}
    return {**kept, **changed, **names}


EXPECTED = {
    "qwen2_vl_7b-qlora-1x24gb": ARTICLE,
    "llava_1_5_7b-full-8xh100-zero3": {**LLAVA, "output_dir": "runs/llava_1_5_7b-full"},
    "llava_1_5_7b-lora-8xh100-zero3": {
        **LLAVA,
        "use_peft": True,
        "lora_r": 64,
        "lora_alpha": 16,
        "num_train_epochs": 1.0,
        "learning_rate": 1.4e-5,
        "logging_steps": 5.0,
        "output_dir": "runs/llava_1_5_7b-lora",
    },
    "qwen2_5_vl_7b-qlora-1x24gb": article("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl_7b"),
    "qwen3_vl_8b-qlora-1x24gb": article("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl_8b"),
    "llama_3_2_11b_vision-qlora-1x24gb": article(
        "meta-llama/Llama-3.2-11B-Vision-Instruct",
        "llama_3_2_11b_vision",
        system_prompt=None,
        user_prompt=f"{ARTICLE['system_prompt']}\n{ARTICLE['user_prompt']}",
        **ONE_AT_A_TIME,
    ),
    "pixtral_12b-qlora-1x24gb": article(
        "mistral-community/pixtral-12b", "pixtral_12b", max_pixels=768 * 768, **ONE_AT_A_TIME
    ),
    "molmo2_8b-qlora-1x24gb": article("allenai/Molmo2-8B", "molmo2_8b", **ONE_AT_A_TIME),
    "pixtral_12b-lora-8xh100-zero3": {
        **LLAVA,
        "model_name_or_path": "mistral-community/pixtral-12b",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 32,
        "use_peft": True,
        "lora_r": 64,
        "lora_alpha": 16,
        "num_train_epochs": 1.0,
        "learning_rate": 1.4e-5,
        "logging_steps": 5.0,
        "output_dir": "runs/pixtral_12b-lora",
    },
    "llama_7b-lora-4gpu": {
        **ALPACA,
        "model_name_or_path": "huggyllama/llama-7b",
        "output_dir": "runs/llama_7b-alpaca-lora",
    },
    "llama_13b-lora-4gpu": {
        **ALPACA,
        "model_name_or_path": "huggyllama/llama-13b",
        "output_dir": "runs/llama_13b-alpaca-lora",
    },
}

LORA = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
OURS = {
    "learning_rate": {"full": 1e-5, "lora": 1e-4, "qlora": 2e-4},
    "global_batch_size": {1: 32, 8: 128},
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "bf16": True,
    "gradient_checkpointing": True,
    "logging_steps": 10.0,
    "save_steps": 200.0,
    "save_total_limit": 2,
}
"""What files say that follow no article: a rate by method, a batch by the number of GPUs."""
PICTURES = {"dataset_name": "HuggingFaceH4/llava-instruct-mix-vsft"}
CHATS = {"dataset_name": "trl-lib/Capybara", "max_length": 2048, "over_length": "truncate_text"}
FREE = {"model_name_or_path", "per_device_train_batch_size", "max_pixels"}
"""What such a file says of its own."""

HARDWARE = {
    "1x24gb": ("L4", 1, "single"),
    "1xh100": ("H100", 1, "single"),
    "4gpu": ("A100", 4, "ddp"),
    "8xh100-zero2": ("H100", 8, "zero2"),
    "8xh100-zero3": ("H100", 8, "zero3"),
}
"""By the end of a file's name: the GPU, how many of them, the strategy."""
NAMES = sorted(file.stem for file in folder("launch").glob("*.yaml"))


def ours(name: str, model: str) -> dict[str, object]:
    """The values of a file that follows no article, without those that are its own."""
    title, method, hardware = name.split("-", 2)
    _, gpus, strategy = HARDWARE[hardware]
    found = published(model)
    assert found is not None
    return {
        **{key: value for key, value in OURS.items() if not isinstance(value, dict)},
        "learning_rate": OURS["learning_rate"][method],
        "global_batch_size": OURS["global_batch_size"][gpus],
        **(PICTURES if found.processor else CHATS),
        **({} if method == "full" else LORA),
        "method": method,
        **METHODS[method],
        # DeepSpeed keeps float32 copies of 16-bit weights; one card trains float32 itself.
        **({} if strategy == "single" else {"dtype": "bfloat16"}),
        "output_dir": f"runs/{title}-{method}",
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_launch_file_holds_its_sources_values(name):
    run = Run.from_file(folder("launch") / f"{name}.yaml")

    assert run.explicit == EXPECTED[name]
    ignored = any("constant ignores warmup_steps" in text for text in run.differences())
    assert ignored == name.endswith("1x24gb")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EXPECTED])
def test_launch_file_without_a_source_says_what_all_of_them_say(name):
    run = Run.from_file(folder("launch") / f"{name}.yaml")

    said = {key: value for key, value in run.explicit.items() if key not in FREE}
    assert said == ours(name, run.get("model_name_or_path"))


@pytest.mark.parametrize("name", NAMES)
def test_launch_file_is_for_the_hardware_of_its_name(name):
    run = Run.from_file(folder("launch") / f"{name}.yaml")

    hardware = HARDWARE[name.split("-", 2)[2]]
    assert (run.launch.gpu, run.launch.gpus_per_node, run.launch.strategy) == hardware
    assert run.notes == ()


def test_sourced_files_are_all_there():
    assert set(EXPECTED) <= set(NAMES)


def test_alpaca_run_files_accumulate_eight_on_four_gpus():
    run = Run.from_file(folder("launch") / "llama_13b-lora-4gpu.yaml")
    assert run.for_world_size(4).get("gradient_accumulation_steps") == 8


@pytest.mark.parametrize("name", NAMES)
def test_launch_file_makes_trl_arguments(name):
    from trl import ModelConfig, SFTConfig

    run = Run.from_file(folder("launch") / f"{name}.yaml", ["--use_cpu", "--tf32", "none"])

    arguments = run.for_world_size(run.launch.gpus_per_node or 1).arguments(SFTConfig)

    assert arguments.per_device_train_batch_size == run.get("per_device_train_batch_size")
    assert run.arguments(ModelConfig).model_name_or_path == run.get("model_name_or_path")
