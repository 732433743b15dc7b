"""Loads a model that can be asked: with its adapter, its chat template, and how answers end."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.data.chat_template import ChatTemplate
from sailplan.data.default_template import complete_template
from sailplan.data.labels import Endings
from sailplan.data.sample import Message, Part
from sailplan.errors import ModelError
from sailplan.model.families import family_of, tokenizer_of
from sailplan.model.folder import explain
from sailplan.model.load import load_model
from sailplan.model.processor import load_processor
from sailplan.model.vocabulary import fit_to_adapter
from sailplan.run.config import Run

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_OF_ADAPTER = re.compile(r"(\.modules_to_save)?\.default(?=\.|$)")
"""What PEFT's files leave out of the names of an adapter's parameters."""

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """A model that can be asked, with what turns conversations into its input and back."""

    model: PreTrainedModel | PeftModel
    """The model, in evaluation mode, with its adapter where it has one."""
    processor: Any
    """Its processor, or its tokenizer where it reads text alone."""
    template: ChatTemplate | None
    """Its chat template; None for one that is asked with plain text only."""
    end_token_ids: tuple[int, ...]
    """The tokens that end an answer."""

    @classmethod
    def of(cls, model: Any, processor: Any, *, chat: bool = True) -> Speaker:
        """Returns a speaker for a loaded model.

        Args:
            model: The model.
            processor: Its processor or tokenizer.
            chat: Whether it will be asked with conversations.

        Raises:
            ModelError: It will, and has no chat template.
        """
        template = ChatTemplate.of(processor) if chat else None
        return cls(
            model=model.eval(),
            processor=processor,
            template=template,
            end_token_ids=end_token_ids(model, processor, template),
        )


def load_speaker(
    name: str,
    *,
    adapter: str | None = None,
    load_in_4bit: bool = False,
    skip_adapter: bool = False,
    trust_remote_code: bool = False,
    use_cpu: bool = False,
) -> Speaker:
    """Loads a model, with an adapter on top where there is one.

    Args:
        name: A model's folder or hub name, or the folder of an adapter, whose base it names.
        adapter: An adapter's folder, to go on top of the model called `name`.
        load_in_4bit: Quantise the model to nf4, as QLoRA trains on it.
        skip_adapter: Leave the adapter out, its processor too.
        trust_remote_code: Run code that comes with the model.
        use_cpu: Stay on the CPU even where there is a GPU.

    Raises:
        ModelError: The model or adapter is missing, broken, or they do not fit.
    """
    if adapter is None and _is_adapter(Path(name).expanduser()):
        adapter, name = name, base_model(Path(name).expanduser())
    if skip_adapter:
        adapter = None
    flags = ["--model_name_or_path", name, "--dtype", "auto", "--use_cpu", str(use_cpu)]
    flags += ["--trust_remote_code", str(trust_remote_code)]
    if load_in_4bit:
        flags += ["--load_in_4bit", "true", "--use_peft", "true"]
    if adapter is not None:
        _check_adapter(Path(adapter).expanduser())  # before the model is loaded
        if (Path(adapter).expanduser() / "tokenizer_config.json").is_file():
            # It was tuned with this chat template and these image sizes.
            flags += ["--processor_name_or_path", adapter]
    run = Run.from_flags(flags)
    processor, model = load_processor(run), load_model(run)
    family = family_of(model.config)
    if family.own_template:  # base models of others are asked with no template of ours
        complete_template(processor, family, chat=True)
    if adapter is None:
        return Speaker.of(model, processor)
    return Speaker.of(put_on(model, Path(adapter).expanduser()), processor)


def end_answers(model: Any, processor: Any, *, chat: bool) -> None:
    """Has the model's own settings for generation end an answer where training ends it.

    They are saved with the model. Ids that were there stay, but for the token that begins a text,
    which old checkpoints name.

    Args:
        model: The model, whose `generation_config` is changed in place.
        processor: Its processor.
        chat: Whether it is trained on chats; else the end of a text is all that ends an answer.
    """
    tokenizer = tokenizer_of(processor)
    ids = end_token_ids(model, processor, ChatTemplate.of(processor) if chat else None)
    begins = {tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    kept = [number for number in ids if number not in begins]
    model.generation_config.eos_token_id = kept[0] if len(kept) == 1 else kept


def end_token_ids(model: Any, processor: Any, template: ChatTemplate | None) -> tuple[int, ...]:
    """Returns the model's own end tokens and the one behind an assistant's turn.

    A base model's own is the end of a text; one that was tuned on chats ends its turn.
    """
    tokenizer = tokenizer_of(processor)
    own = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    turns = [
        Message(role="user", content=[Part(type="text", text="Hi")]),
        Message(role="assistant", content=[Part(type="text", text="Hi")]),
    ]
    endings = Endings.of(processor, family_of(model.config).untrained_token_ids(processor))
    closing = endings.closing(template.render(turns)) if template else None
    if closing is not None:
        ids.add(tokenizer.convert_tokens_to_ids(closing))
    return tuple(sorted(ids - {None}))


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _check_adapter(folder: Path) -> None:
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(
                f"adapter {folder} has no {name}", todo="name a folder that a LoRA run has saved"
            )


def base_model(adapter: Path) -> str:
    """Returns the model that an adapter's own settings name as its base.

    Raises:
        ModelError: They name none, or cannot be read.
    """
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(base["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{adapter / ADAPTER_CONFIG} does not name a base model ({error})",
            todo="name the model, and this folder as its adapter",
        ) from None


def put_on(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Returns the model with an adapter on top; `unload` of it takes the adapter off again.

    Raises:
        ModelError: The adapter is missing, broken, or does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    _check_adapter(adapter)
    try:
        with warnings.catch_warnings():
            # Of missing tensors, which are an error below: they would be random.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            fit_to_adapter(model, adapter)
            tuned = PeftModel.from_pretrained(model, adapter)
    except Exception as error:  # PEFT and torch raise many kinds for files that do not fit
        raise explain(error, str(adapter), "adapter") from error
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="numpy") as file:
        saved = set(file.keys())
    missing = get_peft_model_state_dict(tuned, save_embedding_layers=False).keys() - saved
    if missing:
        raise ModelError(
            f"adapter {adapter} lacks {len(missing)} tensors, such as {min(missing)}",
            todo="name the model that it was trained on, or save it again",
        )
    if getattr(model, "is_quantized", False):
        _compute_as_trained(tuned, adapter)
    return tuned


def _compute_as_trained(tuned: PeftModel, adapter: Path) -> None:
    """Casts an adapter's weights to the dtypes that they are saved in.

    On a quantised model TRL trains them in bfloat16. PEFT loads them in float32, in which the loss
    is not that of the run's own evaluations.
    """
    import torch
    from safetensors import safe_open

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        halves = {name for name in file.keys() if file.get_slice(name).get_dtype() == "BF16"}  # noqa: SIM118
    for name, parameter in tuned.named_parameters():
        saved_name = _OF_ADAPTER.sub("", name)
        if saved_name != name and saved_name in halves:
            parameter.data = parameter.data.to(torch.bfloat16)
