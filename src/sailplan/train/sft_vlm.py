"""The entry script: what each rank runs, from the run file to the saved model.

By hand, with TRL's own flags:

    accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml \
        -m sailplan.train.sft_vlm --model_name_or_path MODEL --dataset_name DATA --bf16

or under `torchrun`, or as `python -m sailplan.train.sft_vlm`; `sailplan train` starts it with one
resolved file, `--config train.yaml`. Text-only models go the same way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from sailplan.imports import calm_libraries, compiled_when_called, quick_imports
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.finished import finished
from sailplan.run.state import ended
from sailplan.train.continued import settled
from sailplan.train.errors import leave, report_errors
from sailplan.train.requests import REQUESTS
from sailplan.train.say import say


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the flags say; a user's mistake ends in one line and its exit code."""
    with report_errors(), REQUESTS.heard():
        run = settled(Run.read_flags(sys.argv[1:] if argv is None else argv))
        done = finished(run)
        if done is None:
            train(run)
        elif os.environ.get("RANK", "0") == "0":
            print(done)
        leave()


def train(run: Run) -> None:
    """Trains one run on this rank, in the order of the work.

    Raises:
        SailplanError: The run cannot go right; which class says why.
    """
    run.require("model_name_or_path")
    directory = RunDirectory.of(run)
    REQUESTS.watch(directory)
    os.environ.update(run.environment())
    if run.get("use_cpu"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed searches for others
    with quick_imports(), compiled_when_called():
        calm_libraries()
        from transformers import PrinterCallback

        from sailplan.data.default_template import complete_template, is_chat
        from sailplan.data.encode import Encoder
        from sailplan.data.formats import resolve_format
        from sailplan.data.images import image_opener
        from sailplan.data.own_ids import check_own_ids
        from sailplan.data.prepare import prepare
        from sailplan.data.sources import load_rows
        from sailplan.data.work import work_of
        from sailplan.evaluate.speaker import end_answers
        from sailplan.model.families import family_of
        from sailplan.model.load import load_model
        from sailplan.model.processor import load_processor_and_tokens
        from sailplan.model.source import load_config
        from sailplan.model.trainable import lora_config, trained_parts
        from sailplan.model.vocabulary import grown
        from sailplan.train.arguments import training_arguments
        from sailplan.train.batches import collator_of, settle_batches
        from sailplan.train.callbacks import DataFile, MetricsFile, PlainProgress
        from sailplan.train.evaluation import early_stopping
        from sailplan.train.finish import check_saved
        from sailplan.train.generations import GenerationLog, watched_rows
        from sailplan.train.guards.bad_rows import count_bad_rows
        from sailplan.train.guards.gradients import GradientGuard
        from sailplan.train.guards.hang.watch import hang_watch
        from sailplan.train.guards.loss import guard_losses
        from sailplan.train.optimizer import optimizer_by_part
        from sailplan.train.parts import settle_parts
        from sailplan.train.pins import pinned
        from sailplan.train.resume import checkpoint_of
        from sailplan.train.saving.settle import settle_saving
        from sailplan.train.state import StateFile
        from sailplan.train.trackers import OneTrackedRun
        from sailplan.train.trainer import Trainer
        from sailplan.train.world import differences

        # The arguments come first: made before the model, they let ZeRO-3 load it in shards.
        args, notes = training_arguments(run)
    run = pinned(run)
    if args.process_index == 0:
        directory.check(run)
    say(*run.notes, *run.differences(), *notes)

    # The data comes before the weights: what is wrong with it shows in seconds.
    processor, added_ids = load_processor_and_tokens(run)
    rows = load_rows(run)
    format = resolve_format(run, rows)
    opener = image_opener(run, rows)
    family = grown(family_of(load_config(run)), added_ids)
    say(*complete_template(processor, family, chat=is_chat(format, rows)))
    encoder = Encoder.of(run, processor, family)
    data = prepare(run, rows, format, encoder, opener)
    say(*data.notes)
    watched = watched_rows(run, data, rows, format, opener)
    if args.process_index == 0:
        say(*check_own_ids(encoder, format, opener, rows, data.train))

    checkpoint = checkpoint_of(run)
    say(*([f"goes on from {checkpoint}"] if checkpoint else []))
    model = load_model(run, checkpoint=checkpoint, added_ids=added_ids)
    end_answers(model, processor, chat=is_chat(format, rows))

    adapters = lora_config(run, model, added_ids)
    trained = trained_parts(run, model, adapters)
    collator, words = collator_of(
        run, args, model, processor, family, format, opener, trained=trained
    )
    say(*words)
    trainer = Trainer(
        model=model,
        args=args,
        collator=collator,
        work=lambda model: work_of(model, processor, family),
        train_dataset=data.train,
        eval_dataset=data.eval,
        processing_class=processor,
        peft_config=adapters,
        optimizer_cls_and_kwargs=optimizer_by_part(run, args, trained),
        callbacks=[
            MetricsFile(run),
            DataFile(directory, data),
            StateFile(directory),
            OneTrackedRun(run, args, checkpoint),
            GradientGuard(run.get("gradient_check_steps")),
            *early_stopping(run),
        ],
    )
    settle_saving(run, trainer, checkpoint)
    if watched:
        trainer.add_callback(GenerationLog(run, watched, trainer))
    if args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(PlainProgress())
    say(*settle_parts(run, args, trainer.model))
    say(*settle_batches(run, trainer, directory, family))
    say(*differences(trainer, checkpoint))
    guard_losses(run, trainer, directory)
    count_bad_rows(run, trainer, directory)

    trainer.heed(REQUESTS, directory)
    with hang_watch(directory, trainer, run.get("hang_timeout")):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        trainer.leave_if_stopped()
        trainer.save_model()
    if args.process_index == 0:
        say(check_saved(directory.path))
        ended(directory, 0)
    trainer.end()


if __name__ == "__main__":
    main()
