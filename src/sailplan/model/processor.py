"""Loads the model's processor or tokenizer, and applies what the run says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.errors import ModelError
from sailplan.model import special_tokens, templates
from sailplan.model.families import tokenizer_of
from sailplan.model.folder import check_path, explain
from sailplan.model.pixels import set_pixel_budget
from sailplan.model.source import load_config, model_name, source_options
from sailplan.model.vocabulary import add_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from sailplan.run.config import Run


def load_processor(run: Run) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Returns the processor of `load_processor_and_tokens` alone, to ask a model."""
    return _with_settings(run)[0]


def load_processor_and_tokens(
    run: Run,
) -> tuple[ProcessorMixin | PreTrainedTokenizerBase, tuple[int, ...]]:
    """Returns the processor to train with, or the tokenizer where the model reads text alone.

    The run's special tokens, added tokens, chat template and pixel budget are applied to it.

    Returns:
        The processor, and the ids of added tokens: the model's embeddings must hold them, and
        have to train there.

    Raises:
        ModelError: The folder or the hub has no such processor, a written token is not in its
            vocabulary, or one that it cannot do without is missing or contradicts config.json.
        RunFileError: The model has no such pixel budget, or a token cannot be added.
    """
    processor, added = _with_settings(run)
    name = run.get("processor_name_or_path") or model_name(run)
    special_tokens.check_unknown(run, tokenizer_of(processor), name)
    return processor, added


def _with_settings(
    run: Run,
) -> tuple[ProcessorMixin | PreTrainedTokenizerBase, tuple[int, ...]]:
    name, source = model_name(run), source_options(run)
    config = load_config(run)  # first: transformers warns where a model's code may not run
    if run.get("processor_name_or_path"):
        name, source["revision"] = run.get("processor_name_or_path"), run.get("processor_revision")
        check_path(name)
    processor = _load(run, str(Path(name).expanduser()), name, source)
    tokenizer = tokenizer_of(processor)
    template = templates.written(run, processor)
    wanted = run.get("added_tokens") or []
    added = add_tokens(tokenizer, wanted, template.tokens if template else ())
    special_tokens.apply(run, tokenizer, name)
    special_tokens.check_ids(run, tokenizer, config, name)
    if template is not None:
        processor.chat_template = template.text
        if template.eos_token and not run.get("eos_token"):
            tokenizer.eos_token = template.eos_token
    set_pixel_budget(processor, min_pixels=run.get("min_pixels"), max_pixels=run.get("max_pixels"))
    return processor, added


def _load(run: Run, path: str, name: str, source: dict[str, Any]) -> Any:
    from transformers import (
        AutoProcessor,
        LlamaTokenizer,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

    settings = special_tokens.read_settings(path, source)
    tokens: dict[str, Any] = dict(special_tokens.corrections(run, name, settings))
    kind: Any = AutoProcessor
    if settings.get("tokenizer_class") == special_tokens.OLD_LLAMA:
        kind, tokens = LlamaTokenizer, {**tokens, "add_bos_token": True}
    try:
        processor = kind.from_pretrained(path, **source, **tokens)
    except Exception as error:
        raise explain(error, name, "processor") from error
    if not isinstance(processor, (ProcessorMixin, PreTrainedTokenizerBase)):
        raise ModelError(
            f"{name} has no tokenizer, only a {type(processor).__name__}",
            todo="copy the tokenizer's files of the base model beside the weights",
        )
    return processor
