"""The few fields that sailplan adds to TRL's, in the same flat style.

The dataclass is read like TRL's own by `sailplan.run.fields`, so it must stay importable without
torch and its defaults must be literals.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class SailplanArguments:
    """Fields of a run file that neither TRL nor transformers knows."""

    processor_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The processor or tokenizer to load, where it is not the model's own."},
    )
    processor_revision: str | None = field(
        default=None,
        metadata={"help": "The revision of processor_name_or_path; its main branch if not given."},
    )
    chat_template_revision: str | None = field(
        default=None,
        metadata={"help": "The revision of a chat_template_path on the Hub."},
    )
    dataset_revision: str | None = field(
        default=None,
        metadata={"help": "The revision of dataset_name; its main branch where not given."},
    )
    bos_token: str | None = field(
        default=None,
        metadata={"help": "The token that begins a text, where the tokenizer's own is wrong."},
    )
    added_tokens: list[str] | None = field(
        default=None,
        metadata={
            "help": "Tokens to add to the vocabulary; the embeddings grow, and their rows train "
            "with LoRA too."
        },
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Samples of one optimizer step over all ranks; gradient_accumulation_steps "
            "follows from it, the micro batch and the world size."
        },
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "How the model trains, in a word that sets use_peft, load_in_4bit and dtype; "
            "auto is the most faithful that fits the GPUs.",
            "choices": ["auto", "full", "lora", "qlora"],
        },
    )
    batching: str | None = field(
        default=None,
        metadata={
            "help": "pack: the samples of a micro batch share one row without padding. pad: they "
            "are padded to the longest. Where not given, pack if the model can. The samples of "
            "an optimizer step are the same.",
            "choices": ["pack", "pad"],
        },
    )
    dataset_format: str = field(
        default="auto",
        metadata={
            "help": "How rows become messages; detected from the columns where not named.",
            "choices": [
                "auto",
                "messages",
                "prompt_completion",
                "llava",
                "alpaca",
                "text",
                "template",
            ],
        },
    )
    system_prompt: str | None = field(
        default=None,
        metadata={
            "help": "`template`: the system text, with {column} fields. Elsewhere: a system text "
            "for rows that have none."
        },
    )
    system_column: str | None = field(
        default=None,
        metadata={
            "help": "Chats: the column with each row's system text; a column named system where "
            "not given."
        },
    )
    user_prompt: str | None = field(
        default=None,
        metadata={"help": "`template`: the user's text, with {column} fields."},
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "`template`: the column that holds the assistant's answer."},
    )
    image_columns: list[str] | None = field(
        default=None,
        metadata={"help": "The columns that hold images; found from their type where not named."},
    )
    alpaca_template: str = field(
        default="alpaca",
        metadata={
            "help": "`alpaca`: the prompt template, a built-in name (alpaca, alpaca_short) or a "
            "JSON file with prompt_input and prompt_no_input."
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={
            "help": "Folder that image paths in the data are relative to and may not leave; the "
            "data file's own folder where not given."
        },
    )
    allowed_image_hosts: list[str] | None = field(
        default=None,
        metadata={"help": "Hosts from which remote images may be fetched; none where not given."},
    )
    min_pixels: int | None = field(
        default=None,
        metadata={"help": "Smallest image area in pixels that the model is shown."},
    )
    max_pixels: int | None = field(
        default=None,
        metadata={"help": "Largest image area in pixels that the model is shown."},
    )
    over_length: str | None = field(
        default=None,
        metadata={
            "help": "What happens to samples longer than max_length. Where not given, they are "
            "dropped, and dropping more than 1 % of the rows is an error.",
            "choices": ["drop", "fail", "truncate_text"],
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "Rows of a stream among which the next is drawn; 1 keeps the files' order."
        },
    )
    eval_size: float | None = field(
        default=None,
        metadata={
            "help": "Rows of the training split held out for evaluation: a count (1 or more) or a "
            "fraction (below 1). Without it, dataset_test_split is used where it exists."
        },
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts that do not train; with LoRA, parts that get no adapter.",
            "choices": ["vision_tower", "projector", "language_model"],
        },
    )
    vision_tower_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the vision tower; learning_rate where not given."},
    )
    projector_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the projector; learning_rate where not given."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Evaluations in a row without a better metric_for_best_model after which "
            "training stops."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "How much better an evaluation must be to count as better."},
    )
    eval_generations: int = field(
        default=4,
        metadata={
            "help": "Held-out rows, the first of them, that the model answers at each evaluation; "
            "the answers go to generations.jsonl and to the trackers; 0 for none."
        },
    )
    eval_generation_tokens: int = field(
        default=64,
        metadata={"help": "Most tokens of such an answer."},
    )
    lora_bias: str = field(
        default="none",
        metadata={"help": "Which biases LoRA trains.", "choices": ["none", "all", "lora_only"]},
    )
    lora_vision: bool = field(
        default=False,
        metadata={"help": "Let LoRA targets match inside the vision tower and projector too."},
    )
    lora_rank_pattern: dict[str, int] | None = field(
        default=None,
        metadata={"help": "Ranks other than lora_r: layer names or regular expressions to ranks."},
    )
    lora_alpha_pattern: dict[str, int] | None = field(
        default=None,
        metadata={"help": "The same for lora_alpha."},
    )
    init_lora_weights: str | None = field(
        default=None,
        metadata={
            "help": "How adapters begin; PEFT's default where not given.",
            "choices": ["gaussian", "orthogonal"],
        },
    )
    gradient_check_steps: int = field(
        default=20,
        metadata={
            "help": "Optimizer steps within which every trainable tensor must have had a "
            "non-zero, finite gradient; 0 switches the check off."
        },
    )
    save_first_step: bool = field(
        default=True,
        metadata={
            "help": "Save a first checkpoint after the first optimizer step, so that a save that "
            "cannot work fails at once. It goes when the next one is whole."
        },
    )
    save_sharded: bool = field(
        default=False,
        metadata={
            "help": "ZeRO-3: checkpoints hold the ranks' shards alone, and no rank gathers the "
            "whole model to save it."
        },
    )
    hang_timeout: float = field(
        default=600.0,
        metadata={
            "help": "Seconds without progress of a rank after which the run ends, with the stack "
            "of every rank; 0 waits for ever."
        },
    )
    on_bad_loss: str = field(
        default="stop",
        metadata={
            "help": "What happens where a loss or a gradient is not finite: the run stops, or the "
            "step is left out.",
            "choices": ["stop", "skip"],
        },
    )
    max_bad_samples: int = field(
        default=0,
        metadata={
            "help": "Rows, over all ranks, that may turn out broken while training and are then "
            "left out; one more ends the run."
        },
    )
    on_oom: str | None = field(
        default=None,
        metadata={
            "help": "What `sailplan train` does where memory runs out: go on with the next plan "
            "that keeps the global batch, ask, or stop. Where not given, it asks on a terminal, "
            "takes the next plan in a Slurm job, and stops elsewhere.",
            "choices": ["next_plan", "ask", "stop"],
        },
    )


@dataclass
class SailplanDatasetConfig:
    """What an entry of `datasets:` may hold beside TRL's own keys."""

    revision: str | None = None
