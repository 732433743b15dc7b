"""The demo's two run files, written as a user would write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sailplan.demo.catalogue import SYSTEM_PROMPT, USER_PROMPT

GLOBAL_BATCH_SIZE = 32
FULL_STEPS = 250
QLORA_STEPS = 100
NUM_EVALUATIONS = 5
MAX_NEW_TOKENS = 32

_COMMON = """\
dataset_name: {catalogue}
dataset_format: template
system_prompt: {system_prompt}
user_prompt: {user_prompt}
answer_column: {answer_column}

global_batch_size: {global_batch_size}
max_steps: {max_steps}
weight_decay: 0.0
adam_beta2: 0.95
lr_scheduler_type: cosine
max_grad_norm: 1.0
bf16: false                 # so small a model learns faster in float32
gradient_checkpointing: false

logging_steps: 5
eval_strategy: steps        # on the catalogue's test rows
eval_steps: {eval_steps}
per_device_eval_batch_size: 64
eval_generation_tokens: {max_new_tokens}
save_strategy: "no"         # the last state is saved whatever this says
report_to: none
output_dir: {output_dir}

generation:                 # what `sailplan compare` lets models answer
  max_new_tokens: {max_new_tokens}
  temperature: 0.0
  batch_size: 64
"""

_FULL = """\
# Trains the whole model to describe products, under DeepSpeed ZeRO-3 on two processes.
# Once more: sailplan train {file}

model_name_or_path: {model}
{common}
per_device_train_batch_size: 16
learning_rate: 2.0e-3
warmup_steps: 20

launch:
  cpu: true                 # also where there are GPUs, so that the demo is the same everywhere
  processes: 2
  strategy: zero3
"""

_QLORA = """\
# Teaches the tuned model another style through an adapter, its own weights in 4 bits: QLoRA, as
# on a single small GPU.
# Once more: sailplan train {file}

model_name_or_path: {model}
load_in_4bit: true
bnb_4bit_quant_type: nf4
use_bnb_nested_quant: true
use_peft: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.0
{common}
per_device_train_batch_size: 32
learning_rate: 1.0e-2       # so few steps of so small an adapter need it
warmup_steps: 5

launch:
  cpu: true
  processes: 1
  strategy: single
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Where everything of a demo lies, under one folder."""

    folder: Path
    """Absolute."""

    @property
    def catalogue(self) -> Path:
        """The data."""
        return self.folder / "catalogue"

    @property
    def model(self) -> Path:
        """The small model before training."""
        return self.folder / "model"

    @property
    def full_run(self) -> Path:
        """The run file of the first step."""
        return self.folder / "full.yaml"

    @property
    def full_output(self) -> Path:
        """The model that the first step saves."""
        return self.folder / "full"

    @property
    def qlora_run(self) -> Path:
        """The run file of the second step."""
        return self.folder / "qlora.yaml"

    @property
    def qlora_output(self) -> Path:
        """The adapter that the second step saves."""
        return self.folder / "qlora"

    @property
    def merged(self) -> Path:
        """Both in one model."""
        return self.folder / "merged"


def write_run_files(files: Files) -> None:
    """Writes the run files of both steps; their paths are absolute, so they run from anywhere."""
    steps = (
        (_FULL, files.full_run, files.model, files.full_output, "description", FULL_STEPS),
        (_QLORA, files.qlora_run, files.full_output, files.qlora_output, "listing", QLORA_STEPS),
    )
    for template, file, model, output, answer_column, max_steps in steps:
        common = _COMMON.format(
            catalogue=_quoted(files.catalogue),
            system_prompt=_quoted(SYSTEM_PROMPT),
            user_prompt=_quoted(USER_PROMPT),
            answer_column=answer_column,
            global_batch_size=GLOBAL_BATCH_SIZE,
            max_steps=max_steps,
            eval_steps=max_steps // NUM_EVALUATIONS,
            max_new_tokens=MAX_NEW_TOKENS,
            output_dir=_quoted(output),
        )
        text = template.format(file=file, model=_quoted(model), common=common)
        file.write_text(text, encoding="utf-8")


def _quoted(value: str | Path) -> str:
    """Returns a YAML string: JSON's are a part of them."""
    return json.dumps(str(value), ensure_ascii=False)
