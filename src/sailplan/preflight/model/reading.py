"""What a model's config and processor say, held against what its processor really does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sailplan.preflight.finding import Finding, failed, ok, unchecked
from sailplan.preflight.model.drawn import SIZES, answers, picture, sample, talks
from sailplan.run.config import Run

if TYPE_CHECKING:
    from sailplan.data.encode import Encoder
    from sailplan.model.families import Family

FACTS = "src/sailplan/model/families.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What is known of a model before its weights are."""

    run: Run
    """Names it."""
    config: Any
    """Its config."""
    family: Family
    """What sailplan derives of that."""
    processor: Any
    """Its processor, or its tokenizer where it reads text alone."""
    template_notes: tuple[str, ...]
    """What was done for want of a chat template."""
    encoder: Encoder
    """What samples are encoded with."""
    parameters: dict[str, int]
    """Elements of each parameter by its name."""
    class_name: str
    """The class of the model."""


def read(run: Run) -> Model:
    """Reads config and processor, and builds the model without its weights.

    Raises:
        SailplanError: One of them cannot be had.
    """
    from sailplan.model.source import load_config, model_name

    name = model_name(run)  # first: it is told at once where there is no such folder

    import torch

    from sailplan.data.default_template import complete_template
    from sailplan.data.encode import Encoder
    from sailplan.model.families import family_of
    from sailplan.model.load import classes
    from sailplan.model.processor import load_processor

    config, processor = load_config(run), load_processor(run)
    family = family_of(config)
    notes = complete_template(processor, family, chat=True)
    auto_class, model_class = classes(config, name)
    with torch.device("meta"):
        model = auto_class.from_config(config)
    return Model(
        run=run,
        config=config,
        family=family,
        processor=processor,
        template_notes=tuple(notes),
        encoder=Encoder.of(run, processor, family),
        parameters={name: value.numel() for name, value in model.named_parameters()},
        class_name=model_class.__name__,
    )


def told(model: Model) -> Finding:
    """What kind of model is it?"""
    family, total = model.family, sum(model.parameters.values())
    sees = "sees images" if family.is_vision else "reads text alone"
    return ok(f"{family.name} ({model.class_name}), {total / 1e9:.3g} B parameters: {sees}")


def parts(model: Model) -> Finding:
    """Are its vision tower, projector and language model where modules of these names are?"""
    family = model.family
    if not family.is_vision:
        return ok("one, which reads text")
    wanted = {
        "vision tower": family.vision_prefixes,
        "projector": family.projector_prefixes,
        "language model": family.language_prefixes,
    }
    counts = {
        part: sum(count for name, count in model.parameters.items() if _is_under(name, prefixes))
        for part, prefixes in wanted.items()
    }
    missing = [part for part, count in counts.items() if not count]
    if missing:
        modules = sorted({".".join(name.split(".")[:2]) for name in model.parameters})
        return failed(
            f"none of its modules is known as its {' or '.join(missing)}; it has "
            f"{', '.join(modules)}",
            fix=f"freeze and the rates of parts need the module's name in {FACTS}; "
            "trained in full or by LoRA it needs none",
        )
    return ok(", ".join(f"{part} {count / 1e6:.4g} M" for part, count in counts.items()))


def chat_template(model: Model) -> Finding:
    """Does it have a chat template?"""
    if model.template_notes:
        return ok("; ".join(model.template_notes).removeprefix("chat template: "))
    return ok("its own")


def labels(model: Model) -> Finding:
    """Is exactly what the assistant says trained on, with the end of each turn?"""
    from sailplan.data.labels import UNTRAINED
    from sailplan.model.families import tokenizer_of

    encoder, methods = model.encoder, Counter[str]()
    for messages in talks(with_image=model.family.is_vision):
        wanted = sample(messages)
        encoded = encoder.encode(wanted, [SIZES[0]] * len(wanted["images"]))
        methods[encoded.method] += 1
        trained = [label for label in encoded.labels if label != UNTRAINED]
        said = tokenizer_of(model.processor).decode(trained, skip_special_tokens=False)
        expected = answers(messages)[-1:] if encoded.method == "last turn" else answers(messages)
        words = encoder.endings.words(said)
        if "".join(words.split()) != "".join("".join(expected).split()):
            return failed(
                f"trained on {words!r}, where the assistant says {' '.join(expected)!r}",
                fix="name a chat template of sailplan's by chat_template_path, or one that marks "
                "{% generation %}",
            )
        if encoder.endings.closing(said) is None:
            return failed(
                f"no token that ends a turn is trained behind {words!r}: the model would not stop",
                fix="set eos_token, or a chat template whose turns end with a special token",
            )
        media = encoder.untrained_ids & set(trained)
        if media:
            return failed(
                f"token {min(media)}, which stands for images, is trained on",
                fix=f"{FACTS} finds image tokens by their names in config and tokenizer",
            )
    how = ", ".join(methods)
    return ok(f"the assistant's words and the end of each turn, found by {how}")


def image_tokens(model: Model) -> Finding:
    """Does an image take as many tokens as its size says?"""
    if not model.family.is_vision:
        return unchecked("it sees no images")
    from sailplan.model.families import tokenizer_of

    tokenizer, ids = tokenizer_of(model.processor), model.encoder.untrained_ids
    counts = {}
    for size in SIZES:
        counted = Counter(
            tokenizer(model.encoder.expander.replacement(size), add_special_tokens=False).input_ids
        )
        real = Counter(_tokens_of(model, size))
        for token in ids:
            if counted[token] != real[token]:
                name = tokenizer.convert_ids_to_tokens(token)
                return failed(
                    f"an image of {size[0]}×{size[1]} pixels takes {real[token]} of {name}, and "
                    f"{counted[token]} were counted",
                    fix=f"its processor needs a fact in {FACTS}",
                )
        counts[size] = sum(real[token] for token in ids)
    shown = ", ".join(f"{size[0]}×{size[1]}: {count}" for size, count in counts.items())
    return ok(f"exact for {len(SIZES)} sizes ({shown})")


def batching(model: Model) -> Finding:
    """Would its samples share a row?"""
    from sailplan.model.batching import choose_batching
    from sailplan.model.load import attention

    implementation, _ = attention(model.run)
    _, words = choose_batching(model.run, model.family, implementation)
    return ok(words.removeprefix("batching: "))


def _is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _tokens_of(model: Model, size: tuple[int, int]) -> list[int]:
    """Returns what the processor's public call makes of an image alone."""
    image: Any = [picture(size)]
    images = [image] if model.family.nested_images else image
    made = model.processor(text=[model.processor.image_token], images=images)
    return list(made["input_ids"][0])
