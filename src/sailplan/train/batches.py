"""How the batches of a run are made: packed or padded, by how many workers, watched by whom."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sailplan.data.collator import Collator
from sailplan.data.extent import largest_words
from sailplan.model.batching import choose_batching
from sailplan.model.load import attention
from sailplan.model.packed_attention import attend_by_segment
from sailplan.model.positions import Positions
from sailplan.train.first_steps import FirstSteps, plan_of
from sailplan.train.guards.packing import PackingCheck
from sailplan.train.loader import settle_loader
from sailplan.train.parts import every_rank_needs_images
from sailplan.train.throughput import throughput_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl import SFTConfig

    from sailplan.data.formats import Format
    from sailplan.data.images import ImageOpener
    from sailplan.model.families import Family
    from sailplan.run.config import Run
    from sailplan.run.directory import RunDirectory
    from sailplan.train.trainer import Trainer


def collator_of(
    run: Run,
    args: SFTConfig,
    model: PreTrainedModel,
    processor: Any,
    family: Family,
    format: Format,
    opener: ImageOpener,
    *,
    trained: Collection[str],
) -> tuple[Collator, list[str]]:
    """Returns the collator of a run, the model made ready for it, and what to tell of it.

    Args:
        run: The run.
        args: Its `SFTConfig`.
        model: The loaded model, not wrapped by anything yet.
        processor: Its processor or tokenizer.
        family: Its family.
        format: Says which images a row has.
        opener: Opens them.
        trained: The parts in which anything trains.

    Raises:
        RunFileError: Packing is asked for and the model cannot.
    """
    implementation, why = attention(run)
    packs, words = choose_batching(run, family, implementation)
    if packs and implementation == "sdpa":
        attend_by_segment(model)
    collator = Collator(
        processor,
        family,
        format,
        opener,
        positions=Positions(model.config) if packs else None,
        dummy_image=every_rank_needs_images(trained),
        pad_to_multiple_of=args.pad_to_multiple_of,
    )
    return collator, [f"attention: {implementation}, {why}", words]


def settle_batches(
    run: Run, trainer: Trainer, directory: RunDirectory, family: Family
) -> list[str]:
    """Settles workers, checks and measurements of a trainer, and returns what to tell of them.

    Args:
        run: The run.
        trainer: Its trainer, before training.
        directory: Its directory, with its plan where there is one.
        family: The model's family.
    """
    args = trainer.args
    if trainer.collator.positions is not None:
        trainer.add_callback(PackingCheck(trainer, family.name))
    loading, notes = settle_loader(run, trainer, plan_of(directory))
    trainer.throughput = throughput_of(trainer, loading)
    trainer.add_callback(trainer.throughput)
    trainer.add_callback(FirstSteps(directory, trainer.throughput))
    if args.process_index == 0 and trainer.sampler is not None:  # takes a moment, of millions
        words = largest_words(
            trainer.sampler,
            epochs=args.num_train_epochs,
            max_steps=args.max_steps,
            multiple=args.pad_to_multiple_of,
        )
        notes.append(words)
    return notes
