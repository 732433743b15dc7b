"""Loads the model's processor or tokenizer, and applies what the run says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.errors import ModelError
from sailplan.model.folder import check_path, explain
from sailplan.model.pixels import set_pixel_budget
from sailplan.model.source import model_name, source_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from sailplan.run.config import Run


def load_processor(run: Run) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Returns the model's processor, or its tokenizer where the model reads text alone.

    `eos_token`, `pad_token` and `chat_template_path` of the run are applied to it. Where the
    tokenizer has no pad token, eos pads, as TRL does it; nothing is lost by that, since labels
    are masked by position and never by token, so that eos is trained wherever the assistant
    ends a turn. `min_pixels` and `max_pixels` are set on its image processor.

    Raises:
        ModelError: The folder or the hub has no such processor, or a written token is not in
            its vocabulary.
        RunFileError: The model has no such pixel budget.
    """
    from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

    name, source = model_name(run), source_options(run)
    if run.get("processor_name_or_path"):
        name, source["revision"] = run.get("processor_name_or_path"), run.get("processor_revision")
        check_path(name)
    try:
        processor = AutoProcessor.from_pretrained(str(Path(name).expanduser()), **source)
    except Exception as error:
        raise explain(error, name, "processor") from error
    if not isinstance(processor, (ProcessorMixin, PreTrainedTokenizerBase)):
        raise ModelError(
            f"{name} has no tokenizer, only a {type(processor).__name__}",
            todo="copy the tokenizer's files of the base model beside the weights",
        )
    tokenizer = getattr(processor, "tokenizer", processor)
    vocabulary = tokenizer.get_vocab()
    for field in ("eos_token", "pad_token"):
        token = run.get(field)
        if token is not None and token not in vocabulary:
            raise ModelError(
                f"{field} {token!r} is not in the vocabulary of {name}",
                todo="write a token that it has",
            )
        if token is not None:
            setattr(tokenizer, field, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if run.get("chat_template_path"):
        processor.chat_template = _chat_template(run, vocabulary)
    set_pixel_budget(processor, min_pixels=run.get("min_pixels"), max_pixels=run.get("max_pixels"))
    return processor


def _chat_template(run: Run, vocabulary: dict[str, int]) -> str:
    """Returns the text of the run's `chat_template_path`, a Jinja file or a model's folder."""
    from transformers import AutoTokenizer

    source = str(run.get("chat_template_path"))
    if source.endswith((".jinja", ".j2")):
        try:
            return Path(source).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(
                f"chat_template_path {source} cannot be read ({error.strerror})",
                allowed="a .jinja file, or a model whose template to take",
            ) from None
    check_path(source)
    try:
        revision = {"revision": run.get("chat_template_revision")}
        other = AutoTokenizer.from_pretrained(source, **source_options(run) | revision)
    except Exception as error:
        raise explain(error, source, "chat template") from error
    added = sorted(other.get_added_vocab().keys() - vocabulary.keys())
    if added or not other.chat_template:
        problem = f"needs tokens that the model lacks ({added[0]})" if added else "is missing"
        raise ModelError(
            f"the chat template of {source} {problem}",
            todo="write a .jinja file that uses the model's own tokens",
        )
    return str(other.chat_template)
