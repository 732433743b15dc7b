"""Lets a model answer questions about images, in batches padded on the left."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sailplan.data.chat_template import ChatTemplate
from sailplan.data.labels import Endings
from sailplan.data.sample import Message, Part
from sailplan.errors import DataError, ModelError
from sailplan.model.families import family_of, tokenizer_of
from sailplan.model.folder import explain
from sailplan.model.load import load_model, load_processor
from sailplan.run.config import Run

if TYPE_CHECKING:
    from peft import PeftModel
    from PIL import Image
    from transformers import PreTrainedModel, TextStreamer

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A conversation that waits for the assistant's answer."""

    messages: Sequence[Message]
    """The turns so far, without the answer."""
    images: Sequence[Image.Image] = ()
    """RGB images, one for each image part of the messages, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. The model's own settings for it are not used."""

    max_new_tokens: int = 256
    """Most tokens of an answer."""
    temperature: float = 0.8
    """Divides the logits: below 1 the likely tokens become likelier. 0 takes the likeliest."""
    top_p: float = 1.0
    """Samples from the fewest tokens that together are this likely."""
    seed: int | None = None
    """Of the sampling; with the same seed and batch the answers are the same."""


GREEDY = Sampling(temperature=0.0)
"""Always the likeliest token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """A model that can be asked, with what turns conversations into its input and back."""

    model: PreTrainedModel | PeftModel
    """The model, in evaluation mode, with its adapter where it has one."""
    processor: Any
    """Its processor, or its tokenizer where it reads text alone."""
    template: ChatTemplate
    """Its chat template."""
    end_token_ids: tuple[int, ...]
    """The tokens that end an answer."""

    @classmethod
    def of(cls, model: Any, processor: Any) -> Speaker:
        """Returns a speaker for a loaded model.

        Raises:
            ModelError: The model has no chat template.
        """
        template = ChatTemplate.of(processor)
        return cls(
            model=model.eval(),
            processor=processor,
            template=template,
            end_token_ids=_end_token_ids(model, processor, template),
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
        adapter, name = name, _base_model(Path(name).expanduser())
    if skip_adapter:
        adapter = None
    flags = ["--model_name_or_path", name, "--dtype", "auto", "--use_cpu", str(use_cpu)]
    flags += ["--trust_remote_code", str(trust_remote_code)]
    if load_in_4bit:
        flags += ["--load_in_4bit", "true", "--use_peft", "true"]
    if adapter is not None:
        _check_adapter(Path(adapter).expanduser())
        if (Path(adapter).expanduser() / "tokenizer_config.json").is_file():
            # It was tuned with this chat template and these image sizes.
            flags += ["--processor_name_or_path", adapter]
    run = Run.from_flags(flags)
    processor, model = load_processor(run), load_model(run)
    if adapter is None:
        return Speaker.of(model, processor)
    return Speaker.of(_with_adapter(model, Path(adapter).expanduser()), processor)


def generate(
    speaker: Speaker,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch_size: int = 1,
    streamer: TextStreamer | None = None,
) -> Iterator[str]:
    """Yields the answer to each question, in order.

    Args:
        speaker: Who is asked.
        questions: What is asked.
        sampling: How tokens are chosen.
        batch_size: Questions answered together, which changes no greedy answer.
        streamer: Is given tokens as they come; for a batch of one.

    Raises:
        DataError: A question's images do not fit its text.
    """
    import torch

    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    tokenizer = tokenizer_of(speaker.processor)
    if family_of(speaker.model.config).cross_attention:
        # Tokens before the first image see all image places alike, those that only pad too.
        batch_size = 1
    for start in range(0, len(questions), batch_size):
        inputs = _inputs(speaker, questions[start : start + batch_size])
        with torch.inference_mode():
            tokens = speaker.model.generate(
                **inputs,
                **_settings(sampling),
                eos_token_id=list(speaker.end_token_ids),
                pad_token_id=tokenizer.pad_token_id,
                streamer=streamer,
            )
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        for text in tokenizer.batch_decode(answers, skip_special_tokens=True):
            yield text.strip()


def text_streamer(speaker: Speaker, write: Callable[[str], None]) -> TextStreamer:
    """Returns a streamer that hands an answer's text to `write`, word by word."""
    from transformers import TextStreamer

    tokenizer = tokenizer_of(speaker.processor)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    streamer.on_finalized_text = lambda text, stream_end=False: write(text)  # noqa: ARG005
    return streamer


def _inputs(speaker: Speaker, questions: Sequence[Question]) -> Any:
    """Returns the model's inputs, padded on the left: answers go on from the right end."""
    processor, tokenizer = speaker.processor, tokenizer_of(speaker.processor)
    texts = [speaker.template.render(q.messages, add_generation_prompt=True) for q in questions]
    for text, question in zip(texts, questions, strict=True):
        _check_images(processor, text, question)
    # As in training: BOS is the tokenizer's to add, unless the template wrote it.
    is_complete = processor is tokenizer or texts[0].startswith(tokenizer.bos_token or "\0")
    settings = {
        "add_special_tokens": not is_complete,
        "padding": True,
        "padding_side": "left",
        "return_tensors": "pt",
    }
    if processor is tokenizer:
        batch = tokenizer(texts, return_token_type_ids=False, **settings)
        return batch.to(speaker.model.device)
    images: Any = [list(question.images) for question in questions]
    if not family_of(speaker.model.config).nested_images:
        images = [image for of_question in images for image in of_question]
    batch = processor(text=texts, images=images if any(images) else None, **settings)
    return batch.to(speaker.model.device, speaker.model.dtype)


def _check_images(processor: Any, text: str, question: Question) -> None:
    token = getattr(processor, "image_token", None)
    if token is None and question.images:
        raise DataError("images for a model that sees none", todo="leave them out")
    places = text.count(token) if token else 0
    if places != len(question.images):
        raise DataError(
            f"{places} image placeholder(s) for {len(question.images)} image(s)",
            allowed="one placeholder for each image",
        )


def _settings(sampling: Sampling) -> dict[str, Any]:
    # What is None or 0 here would otherwise come from the model's own generation_config: Qwen2-VL
    # samples with top_k 1, with which no temperature has any effect.
    settings = {"max_new_tokens": sampling.max_new_tokens, "num_beams": 1, "use_cache": True}
    if sampling.temperature == 0:
        return {**settings, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        **settings,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
    }


def _end_token_ids(model: Any, processor: Any, template: ChatTemplate) -> tuple[int, ...]:
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
    closing = endings.closing(template.render(turns))
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


def _base_model(adapter: Path) -> str:
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return str(base["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{adapter / ADAPTER_CONFIG} does not name a base model ({error})",
            todo="name the model, and this folder as its adapter",
        ) from None


def _with_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        with warnings.catch_warnings():
            # Of missing tensors, which are an error below: they would be random.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
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
    return tuned
