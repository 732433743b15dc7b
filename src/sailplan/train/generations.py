"""Has the model answer a few fixed held-out rows at each evaluation, so that one sees it learn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sailplan.data.token_rows import column
from sailplan.errors import DataError, SailplanError
from sailplan.evaluate.generate import Question, Sampling, generate
from sailplan.evaluate.held_out import Asked, held_out_questions
from sailplan.evaluate.speaker import Speaker
from sailplan.files import write_atomically
from sailplan.pages.pictures import thumbnail
from sailplan.run.directory import RunDirectory
from sailplan.train.phase import PHASE
from sailplan.train.ranks import of_all_ranks
from sailplan.train.say import say
from sailplan.train.watched import Answered, Trackers

if TYPE_CHECKING:
    from sailplan.data.formats import Format
    from sailplan.data.images import ImageOpener
    from sailplan.data.prepare import Prepared
    from sailplan.data.sources import Rows
    from sailplan.run.config import Run
    from sailplan.train.trainer import Trainer

_ANSWERING = "answering held-out rows"


def watched_rows(
    run: Run, data: Prepared, rows: Rows, format: Format, opener: ImageOpener
) -> dict[str, Asked]:
    """Returns the first rows that are evaluated as questions; none where the run does not evaluate.

    Args:
        run: The run.
        data: Its encoded rows; what was dropped of them is not asked.
        rows: The raw rows.
        format: How they become samples.
        opener: Opens their images.

    Returns:
        The questions by a name of each row that is the same in every launch.

    Raises:
        DataError: A row cannot be asked, and `eval_generations` is written in the run.
    """
    if run.get("eval_strategy") in (None, "no") or data.eval is None:
        return {}
    indices = column(data.eval, "row")[: run.get("eval_generations")].tolist()
    try:
        asked = held_out_questions(rows, format, opener, indices)
        for one in asked if run.is_set("eval_generations") else ():
            one.images()
    except DataError as error:
        if run.is_set("eval_generations"):
            raise
        say(f"held-out rows are not answered: {error}")
        return {}
    names = [str(rows.numbers["eval"][index]) for index in indices]
    return dict(zip(names, asked, strict=True))


class GenerationLog(TrainerCallback):
    """Appends answers to the run's file, and shows them in its trackers.

    Every rank asks the same: under ZeRO-3 a layer's weights come from all of them. It leaves no
    trace in training. Where a model cannot be asked, or the answers cannot be written, all ranks
    leave it from then on, and training goes on.

    Args:
        run: The run.
        asked: What is asked, as `watched_rows` returns it.
        trainer: The trainer, whose model answers.
    """

    def __init__(self, run: Run, asked: Mapping[str, Asked], trainer: Trainer) -> None:
        self._directory = RunDirectory.of(run)
        self._sampling = Sampling(max_new_tokens=run.get("eval_generation_tokens"), temperature=0)
        self._asked, self._trainer = asked, trainer
        self._trackers = Trackers(trainer.callback_handler)
        self._is_off = self._has_images = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks, unless it has failed before."""
        if self._is_off:
            return
        with PHASE.within(_ANSWERING):
            failure = self._failure(state)
            if of_all_ranks(self._trainer.accelerator, [failure is not None]).any():
                self._is_off = True
                why = next(text for text in gather_object([failure]) if text is not None)
                say(f"held-out rows are not answered any more, training goes on: {why}")

    def _failure(self, state: TrainerState) -> str | None:
        """Asks and writes down; returns what went wrong, in a line."""
        try:
            questions = [one.question for one in self._asked.values()]
            answers = self._answers(questions)
            if state.is_world_process_zero:
                self._write(questions, answers, state.global_step)
        except torch.OutOfMemoryError:
            if _is_sharded(self._trainer):
                raise  # other ranks wait for this one's shards, and it cannot tell them
            return "memory ran out; lower per_device_eval_batch_size or eval_generation_tokens"
        except Exception as error:  # whatever a model, a processor or a disk raises
            return str(error) if isinstance(error, SailplanError) else _first_line(error)
        return None

    def _answers(self, questions: Sequence[Question]) -> list[str]:
        trainer = self._trainer
        with _untouched(trainer.model), trainer.compute_loss_context_manager():
            speaker = Speaker.of(
                trainer.model, trainer.processing_class, chat=bool(questions[0].messages)
            )
            # As many rows as an evaluation takes at once: of their logits, only the last are made.
            batch_size = trainer.args.per_device_eval_batch_size
            said = generate(speaker, questions, self._sampling, batch_size=batch_size)
            return [answer.text for answer in said]

    def _write(self, questions: Sequence[Question], answers: Sequence[str], step: int) -> None:
        folder, answered = self._directory.generations, []
        for (name, one), question, answer in zip(
            self._asked.items(), questions, answers, strict=True
        ):
            images = {folder / f"{name}-{n}.webp": image for n, image in enumerate(question.images)}
            for path, image in () if self._has_images else images.items():
                folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, thumbnail(image))
            answered.append(
                Answered(
                    place=one.place,
                    prompt=one.prompt,
                    reference=one.answer,
                    answer=answer,
                    images=tuple(images),
                )
            )
        self._has_images = True
        lines = [json.dumps(_record(step, one), ensure_ascii=False) + "\n" for one in answered]
        # Lone surrogates, which broken data may hold, are no text.
        with self._directory.generations_file.open("a", encoding="utf-8", errors="replace") as file:
            file.writelines(lines)
        for tracker, why in self._trackers.show(step, answered):
            say(f"answers to held-out rows are not shown in {tracker} any more: {why}")


def _record(step: int, one: Answered) -> dict[str, Any]:
    return {
        "step": step,
        "row": one.place,
        "prompt": one.prompt,
        "reference": one.reference,
        "answer": one.answer,
        "images": [path.name for path in one.images],
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_sharded(trainer: Trainer) -> bool:
    """Says whether a rank needs the others' weights for a forward pass."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Lets a model generate inside, and leaves it, random numbers and memory as they were."""
    modes = {module: module.training for module in model.modules()}
    asked = model.get_base_model() if isinstance(model, PeftModel) else model
    # A token may take long where every layer is gathered for it: each is a sign of progress.
    moves = asked.register_forward_hook(lambda *_: PHASE.move(_ANSWERING))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), _whole_below(model, asked):
            yield
    finally:
        moves.remove()
        for module, mode in modes.items():
            module.training = mode
        clear_device_cache()


@contextmanager
def _whole_below(model: Any, asked: Any) -> Iterator[None]:
    """Readies a model that FSDP2 shards: generation would not know of it, nor FSDP2 of that."""
    if not isinstance(model, FSDPModule):
        yield
        return
    asked._is_fsdp_managed_module = True  # ranks go on until all have ended their answers
    model.unshard()  # what PEFT's own `generate` passes by: it calls the model below
    try:
        yield
    finally:
        model.reshard()
        del asked._is_fsdp_managed_module
