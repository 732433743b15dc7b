"""Writes down what the model answers to a few held-out rows at each evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from sailplan.evaluate.generate import Sampling, generate
from sailplan.evaluate.held_out import Asked, held_out_questions
from sailplan.evaluate.speaker import Speaker
from sailplan.run.directory import RunDirectory
from sailplan.train.phase import PHASE

if TYPE_CHECKING:
    from sailplan.data.formats import Format
    from sailplan.data.images import ImageOpener
    from sailplan.data.sources import Rows
    from sailplan.run.config import Run
    from sailplan.train.trainer import Trainer


def log_generations(
    run: Run, rows: Rows, format: Format, opener: ImageOpener, trainer: Trainer
) -> None:
    """Has the trainer ask the first held-out rows at each evaluation, where the run wants it."""
    count = min(run.get("eval_generations"), len(rows.eval or ()))
    if count:
        asked = held_out_questions(rows, format, opener, range(count))
        trainer.add_callback(GenerationLog(run, asked, trainer))


class GenerationLog(TrainerCallback):
    """Appends answers to the run's file, and shows them in TensorBoard where that is on.

    Every rank asks the same: under ZeRO-3 a layer's weights come from all of them.

    Args:
        run: The run.
        asked: What is asked.
        trainer: The trainer, whose model answers.
    """

    def __init__(self, run: Run, asked: Sequence[Asked], trainer: Trainer) -> None:
        self._file = RunDirectory.of(run).generations_file
        self._sampling = Sampling(max_new_tokens=run.get("eval_generation_tokens"), temperature=0)
        self._asked, self._trainer = asked, trainer

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks."""
        trainer = self._trainer
        model, questions = trainer.model, [asked.question for asked in self._asked]
        speaker = Speaker.of(model, trainer.processing_class, chat=bool(questions[0].messages))
        said = []
        PHASE.move("answering held-out rows")
        with trainer.compute_loss_context_manager():
            for answer in generate(speaker, questions, self._sampling):
                said.append(answer.text)
                PHASE.move("answering held-out rows")
        if not state.is_world_process_zero:
            return
        records = [
            {
                "step": state.global_step,
                "row": asked.place,
                "prompt": asked.prompt,
                "reference": asked.answer,
                "answer": answer,
            }
            for asked, answer in zip(self._asked, said, strict=True)
        ]
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        for callback in trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if isinstance(callback, TensorBoardCallback) and writer is not None:
                for record in records:
                    writer.add_text(record["row"], _shown(record), state.global_step)


def _shown(record: dict[str, Any]) -> str:
    """Returns a record as a block that Markdown leaves as it is."""
    lines = (f"{name}: {record[name]}" for name in ("prompt", "reference", "answer"))
    return "\n".join(f"    {line}" for text in lines for line in text.splitlines())
