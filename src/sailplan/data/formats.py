"""Decides how rows become samples: by the run file's word, else by their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sailplan.data.conversations import Llava, Messages, PromptCompletion
from sailplan.data.mixture import seen, shared_columns
from sailplan.data.plain import Text, alpaca
from sailplan.data.prompts import parse
from sailplan.data.references import PART_KEYS
from sailplan.data.sample import ImageReference, Sample
from sailplan.data.template import Template
from sailplan.errors import DataError, RunFileError

if TYPE_CHECKING:
    from sailplan.data.sources import Rows
    from sailplan.run.config import Run


class Format(Protocol):
    """How a row becomes a sample. Pure and picklable: DataLoader workers get a copy."""

    @property
    def name(self) -> str:
        """The name that `dataset_format` knows it by."""

    @property
    def image_fields(self) -> list[str]:
        """The raw columns that `images` reads."""

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Returns the row as a sample.

        Raises:
            DataError: The row cannot be trained on; the caller adds which row it is.
        """

    def images(self, row: Mapping[str, Any]) -> list[ImageReference]:
        """Returns `sample(row)["images"]`, from the columns of `image_fields` alone."""


def resolve_format(run: Run, rows: Rows) -> Format:
    """Returns the format of the rows, named by `dataset_format` or detected from the columns.

    Of several entries, only columns of images may be missing in some: there, rows have no image.

    Raises:
        DataError: The columns fit no format, or several, or lack what the named format needs.
        RunFileError: A prompt of the run file is malformed, or belongs to another format.
    """
    features, columns = rows.train.features, shared_columns(rows.entries)
    name = run.get("dataset_format")
    needs = _needs(run)
    if name == "auto":
        name = _detect(run, rows, columns, needs)
    missing = [column for column in needs[name] if column not in columns]
    if missing:
        lacking = ", ".join(map(repr, missing))
        raise DataError(f"dataset_format {name} lacks the column {lacking}; {seen(rows.entries)}")
    _refuse_idle_prompts(run, name)
    system = {
        "system_prompt": run.get("system_prompt"),
        "system_column": _system_column(run, rows, name),
    }
    images = _image_columns(run, rows)
    if name == "template":
        return _template(run, rows, images)
    if name in ("alpaca", "text"):
        if images:
            raise DataError(
                f"dataset_format {name} takes no images, but {', '.join(map(repr, images))} "
                "holds some",
                todo="use dataset_format: template, or leave the column out",
            )
        return (
            alpaca(run.get("alpaca_template")) if name == "alpaca" else Text(column=needs[name][0])
        )
    if name == "llava":
        return Llava(image_columns=images, **system)
    if name == "messages":
        return Messages(
            image_columns=images,
            inline_images=_may_carry_images(features["messages"])
            or str(getattr(features["messages"], "dtype", "")).endswith("string"),  # JSON of turns
            **system,
        )
    return PromptCompletion(
        image_columns=images,
        inline_images=any(_may_carry_images(features[c]) for c in ("prompt", "completion")),
        **system,
    )


def _needs(run: Run) -> dict[str, list[str]]:
    """The columns without which a format cannot be, in the order in which formats are told."""
    answer = run.get("answer_column")
    return {
        "messages": ["messages"],
        "prompt_completion": ["prompt", "completion"],
        "llava": ["conversations"],
        "alpaca": ["instruction", "output"],
        "text": [run.get("dataset_text_field")],
        "template": [answer] if answer else [],
    }


def _detect(run: Run, rows: Rows, columns: list[str], needs: dict[str, list[str]]) -> str:
    if run.get("user_prompt"):
        return "template"
    if run.is_set("dataset_text_field") and needs["text"][0] in columns:
        return "text"
    fitting = [
        name
        for name, needed in needs.items()
        if name != "template" and all(column in columns for column in needed)
    ]
    if len(fitting) == 1:
        return fitting[0]
    each = "; ".join(
        f"{name}: {' and '.join(needed)}" for name, needed in needs.items() if name != "template"
    )
    if fitting:
        raise DataError(
            f"the columns fit {' and '.join(fitting)}; {seen(rows.entries)}",
            todo=f"name one: dataset_format: {fitting[0]}",
        )
    raise DataError(
        f"the columns fit no format; {seen(rows.entries)}",
        allowed=f"{each}; template: any columns, with user_prompt and answer_column",
        todo="set dataset_format, or rename the columns"
        + (" so that all entries have one format" if len(rows.entries) > 1 else ""),
    )


def _refuse_idle_prompts(run: Run, name: str) -> None:
    """A prompt that the format would never look at is a mistake, not a preference."""
    idle = {
        "user_prompt": name != "template",
        "answer_column": name != "template",
        "system_prompt": name in ("alpaca", "text"),
        "system_column": name in ("alpaca", "text", "template"),
        "alpaca_template": name != "alpaca",
    }
    for option, is_idle in idle.items():
        if is_idle and run.is_set(option) and run.get(option) is not None:
            raise RunFileError(
                f"{option} does nothing with dataset_format {name}", todo="remove it"
            )


def _system_column(run: Run, rows: Rows, name: str) -> str | None:
    """The column named by the user, else `system` where rows of chats have one."""
    named = run.get("system_column")
    if named is not None and named not in rows.train.column_names:
        raise DataError(f"there is no system_column {named!r}; {seen(rows.entries)}")
    is_chat = name in ("messages", "prompt_completion", "llava")
    return named or ("system" if is_chat and "system" in rows.train.column_names else None)


def _template(run: Run, rows: Rows, images: tuple[str, ...]) -> Template:
    user, answer = run.get("user_prompt"), run.get("answer_column")
    if not user or not answer:
        missing = "user_prompt" if not user else "answer_column"
        raise RunFileError(f"dataset_format template without {missing}", todo=f"set {missing}")
    shared = shared_columns(rows.entries)
    columns = [c for c in rows.train.column_names if c in shared or c in images]
    texts = [column for column in columns if column not in images]
    return Template(
        user=parse(user, option="user_prompt", columns=columns),
        system=parse(run.get("system_prompt") or "", option="system_prompt", columns=texts),
        answer_column=answer,
        image_columns=images,
        class_names={
            column: tuple(feature.names)
            for column, feature in rows.train.features.items()
            if type(feature).__name__ == "ClassLabel"
        },
    )


def _image_columns(run: Run, rows: Rows) -> tuple[str, ...]:
    """The columns named by the user, else those of images by type, else `images` or `image`."""
    features = rows.train.features
    named = run.get("image_columns")
    if named:
        missing = [column for column in named if column not in features]
        if missing:
            raise DataError(
                f"no image column {', '.join(map(repr, missing))}; {seen(rows.entries)}"
            )
        return tuple(named)
    typed = [column for column, feature in features.items() if _is_image(feature)]
    known = [column for column in ("images", "image") if column in features]
    if len(known) == 2:
        raise DataError(
            "there are two image columns, 'image' and 'images'",
            todo="name the right one: image_columns: [images]",
        )
    return tuple(dict.fromkeys(typed + known))


def _is_image(feature: object) -> bool:
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ == "Image" or (inner is not None and _is_image(inner))


def _may_carry_images(feature: Any) -> bool:
    """Whether a column of turns may have image parts with images of their own.

    Known from its type, but for a `Json` column, whose turns may be anything.
    """
    turn = getattr(feature, "feature", feature)
    if not isinstance(turn, Mapping):
        return type(turn).__name__ == "Json"
    content = turn.get("content")
    part = getattr(content, "feature", content)
    if isinstance(part, Mapping):
        return any(key in part for key in PART_KEYS)
    return type(part).__name__ == "Json"
