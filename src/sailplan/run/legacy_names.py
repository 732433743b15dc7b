"""What transformers, TRL and Alpaca-LoRA once called a setting, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    # transformers
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "tokenizer": "processor_name_or_path",
    "tokenizer_name": "processor_name_or_path",
    "tokenizer_name_or_path": "processor_name_or_path",
    "processor_name": "processor_name_or_path",
    # TRL and the scripts written with it
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "seq_length": "max_length",
    "model_max_length": "max_length",
    "model_name": "model_name_or_path",
    "model_id": "model_name_or_path",
    "dataset_path": "dataset_name",
    "dataset_config_name": "dataset_config",
    "dataset_train_name": "dataset_train_split",
    "dataset_test_name": "dataset_test_split",
    "image_folder": "image_root",
    "log_with": "report_to",
    "use_liger": "use_liger_kernel",
    "peft_lora_r": "lora_r",
    "peft_lora_alpha": "lora_alpha",
    # PEFT and bitsandbytes
    "use_lora": "use_peft",
    "r": "lora_r",
    "lora_rank": "lora_r",
    "bias": "lora_bias",
    "target_modules": "lora_target_modules",
    "lora_target": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "task_type": "lora_task_type",
    "rank_pattern": "lora_rank_pattern",
    "alpha_pattern": "lora_alpha_pattern",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "use_double_quant": "use_bnb_nested_quant",
    # LLaVA and other trainers of vision-language models
    "mm_vision_tower_lr": "vision_tower_learning_rate",
    "mm_projector_lr": "projector_learning_rate",
    "vision_lr": "vision_tower_learning_rate",
    "merger_lr": "projector_learning_rate",
    "vit_lr": "vision_tower_learning_rate",
    "aligner_lr": "projector_learning_rate",
    # Alpaca-LoRA's finetune.py
    "base_model": "model_name_or_path",
    "data_path": "dataset_name",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "prompt_template_name": "alpaca_template",
}

GONE: Mapping[str, str] = {
    "save_safetensors": "weights are always saved as safetensors",
    "overwrite_output_dir": "a directory that holds another run is refused, and the same run goes "
    "on where resume_from_checkpoint says",
    "add_eos_token": "the end of every answer is always there and always trained",
    "include_tokens_per_second": "tokens_per_s is always logged",
    "half_precision_backend": "there is one way to do mixed precision",
    "fp16_backend": "there is one way to do mixed precision",
    "fp16_opt_level": "there is one way to do mixed precision",
    "dataset_batch_size": "the data is prepared row by row",
    "num_of_sequences": "samples stay whole, never cut into chunks",
    "chars_per_token": "samples stay whole, never cut into chunks",
    "jit_mode_eval": "transformers dropped it",
    "use_ipex": "transformers dropped it",
    "ray_scope": "transformers dropped it",
    "past_index": "transformers dropped it",
    "mp_parameters": "transformers dropped it",
    "tpu_num_cores": "transformers dropped it",
    "use_mps_device": "the device is found without it",
}
