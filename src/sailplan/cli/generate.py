"""`sailplan generate MODEL --prompt TEXT`: one question, one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sailplan.terminal import harmless

if TYPE_CHECKING:
    from sailplan.evaluate.generate import Question


def generate(
    model: Annotated[str, typer.Argument(help="A model's or an adapter's folder, or a hub name.")],
    prompt: Annotated[
        str,
        typer.Option(help="What to ask. Images stand where it says <image>, else in front."),
    ],
    image: Annotated[
        list[Path] | None, typer.Option(help="An image file; as many as wanted.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter to put onto the model.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Leave the adapter out.")] = False,
    system: Annotated[str | None, typer.Option(help="The system text.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", min=1, help="Most tokens of the answer.")
    ] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest.")] = 0.8,
    top_p: Annotated[
        float, typer.Option("--top_p", min=0.0, max=1.0, help="Share of likely tokens kept.")
    ] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="The same as --temperature 0.")] = False,
    seed: Annotated[int | None, typer.Option(help="Makes the answer repeatable.")] = None,
    load_in_4bit: Annotated[
        bool, typer.Option("--load_in_4bit", help="Quantise the model to nf4.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Asks a base or tuned model one question about images."""
    from sailplan.evaluate import generate as room
    from sailplan.evaluate.speaker import load_speaker
    from sailplan.imports import calm_libraries

    question = _question(prompt, image or [], system)
    print(f"loading {model}", file=sys.stderr)
    calm_libraries()
    speaker = load_speaker(
        model,
        adapter=adapter,
        load_in_4bit=load_in_4bit,
        skip_adapter=base,
        trust_remote_code=trust_remote_code,
    )
    sampling = room.Sampling(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if greedy else temperature,
        top_p=top_p,
        seed=seed,
    )
    streamer = room.text_streamer(speaker, _write)
    for _ in room.generate(speaker, [question], sampling, streamer=streamer):
        _write("\n")


def _question(prompt: str, files: list[Path], system: str | None) -> Question:
    """Opens the images and puts them where the prompt says `<image>`, else in front of it."""
    from sailplan.data.images import ImageOpener
    from sailplan.data.sample import ImageReference, Message, Part
    from sailplan.data.turns import IMAGE_PLACEHOLDER, Turn, expand_placeholders
    from sailplan.errors import DataError
    from sailplan.evaluate.generate import Question

    turn = Turn(role="user", parts=[Part(type="text", text=prompt)], images=[], plain=True)
    expand_placeholders([turn])
    places = len(turn.images)
    if places == 0:
        turn.parts = [*(Part(type="image") for _ in files), *turn.parts]
    elif places != len(files):
        raise DataError(
            f"{places} × {IMAGE_PLACEHOLDER} in the prompt for {len(files)} × --image",
            allowed="one --image for each, or none in the prompt",
        )
    messages = [Message(role="user", content=turn.parts)]
    if system is not None:
        messages.insert(0, Message(role="system", content=[Part(type="text", text=system)]))
    images = []
    for file in files:
        path = file.expanduser().resolve()
        reference = ImageReference(path=path.name, bytes=None)
        images.append(ImageOpener(root=path.parent).open(reference))
    return Question(messages=messages, images=images)


def _write(text: str) -> None:
    """Prints a model's words without what could steer the terminal."""
    safe = harmless(text)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(safe.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()
