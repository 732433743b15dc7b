"""The fields of a run file, read from the installed libraries' sources without importing them.

Importing trl costs seconds and pulls in torch; a login node has neither to spare. The dataclasses
are plain text, so their names, types, defaults, choices and help are read with `ast` from the few
class bodies that matter. A test keeps the table equal to the live dataclasses.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SOURCES = (
    # (package, file, class, the class that `Run.arguments` is asked for)
    ("trl", "scripts/utils.py", "ScriptArguments", "ScriptArguments"),
    ("trl", "scripts/utils.py", "DatasetMixtureConfig", "DatasetMixtureConfig"),
    ("transformers", "training_args.py", "TrainingArguments", "SFTConfig"),
    ("trl", "trainer/base_config.py", "_BaseConfig", "SFTConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig", "SFTConfig"),
    ("trl", "trainer/model_config.py", "ModelConfig", "ModelConfig"),
    ("sailplan", "run/arguments.py", "SailplanArguments", "SailplanArguments"),
)
"""In the order of inheritance: a later field of the same name replaces an earlier one."""

_ENUM_FILES = ("trainer_utils.py", "training_args.py", "debug_utils.py")

_FIELDS_END = re.compile(r"^(?:    def |    @|[^\s#])", re.MULTILINE)

_SCALARS = {"str": "str", "int": "int", "float": "float", "bool": "bool", "None": "none"}

_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "dict": "a mapping",
    "str": "a text",
    "none": "null",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldType:
    """What a field takes: a union of kinds."""

    kinds: frozenset[str]
    """Of `bool`, `int`, `float`, `str`, `list`, `dict`, `none`, `other`."""
    item: str = "str"
    """The kind of a list's items, or `DatasetConfig`."""

    def __str__(self) -> str:
        """Returns the type in a user's words."""
        words = [text for kind, text in _WORDS.items() if kind in self.kinds]
        if "list" in self.kinds:
            words.insert(0, f"a list of {'mappings' if self.item == 'DatasetConfig' else 'texts'}")
        return " or ".join(words) or "nothing that a run file can hold"


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field of a run file."""

    name: str
    owner: str
    """The dataclass that it belongs to, or `accelerate` for a flag of `accelerate launch`."""
    type: FieldType
    default: Any = None
    choices: tuple[str, ...] | None = None
    """The only values allowed, of enumerations too."""
    help: str = ""
    bare: Any = None
    """The value of the flag written without one, where the field is not a plain bool."""


@lru_cache(maxsize=1)
def field_table() -> Mapping[str, Field]:
    """Returns every field of a run file by name, in the order of their owners."""
    table: dict[str, Field] = {}
    for package, file, name, owner in _SOURCES:
        for found in _class_fields(package_folder(package) / file, name, owner):
            table[found.name] = found
    return table


@lru_cache(maxsize=1)
def dataset_table() -> Mapping[str, Field]:
    """Returns the fields of one entry of `datasets:` by name."""
    source = package_folder("trl") / "scripts/utils.py"
    ours = package_folder("sailplan") / "run/arguments.py"
    return {
        found.name: found
        for path, name in ((source, "DatasetConfig"), (ours, "SailplanDatasetConfig"))
        for found in _class_fields(path, name, "DatasetConfig")
    }


@lru_cache(maxsize=4)
def package_folder(package: str) -> Path:
    """Returns where an installed package's sources lie, without importing it.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(spec.origin).parent


def _class_fields(path: Path, name: str, owner: str) -> Iterator[Field]:
    """Yields the fields that one dataclass declares itself."""
    names: dict[str, Any] = {}
    for statement in _flatten(_class_body(path.read_text(encoding="utf-8"), name)):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            names[statement.targets[0].id] = _literal(statement.value, names)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            kind, enum = _field_type(statement.annotation)
            details = _field_call(statement.value, names)
            yield Field(
                name=statement.target.id,
                owner=owner,
                type=kind,
                choices=details.pop("choices", None) or enum,
                **details,
            )


def _flatten(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields a class body's statements, those under `if` too: the tested versions take them."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _flatten(statement.body)
        else:
            yield statement


def _class_body(text: str, name: str) -> list[ast.stmt]:
    """Returns the statements of a class, parsing as little of the file as will do."""
    start = re.search(rf"^class {name}\b", text, re.MULTILINE)
    if start is None:
        raise ModuleNotFoundError(f"the installed version has no class {name}")
    # Fields end where the first method (or its decorator) or the next top-level statement begins.
    end = _FIELDS_END.search(text, start.end())
    try:
        tree = ast.parse(text[start.start() : end.start() if end else None])
    except SyntaxError:  # a docstring with text in its first column: read the whole file
        tree = ast.parse(text)
    return next(
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    )


def _field_call(value: ast.expr | None, names: Mapping[str, Any]) -> dict[str, Any]:
    """Returns default, choices, help and bare of `= field(default=..., metadata={...})`."""
    if not isinstance(value, ast.Call):
        return {"default": None if value is None else _literal(value, names)}
    details: dict[str, Any] = {}
    for keyword in value.keywords:
        if keyword.arg == "default":
            details["default"] = _literal(keyword.value, names)
        elif keyword.arg == "default_factory":
            details["default"] = {"list": [], "dict": {}}.get(ast.unparse(keyword.value))
        elif keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, entry in zip(keyword.value.keys, keyword.value.values, strict=True):
                label = _literal(key, names) if key is not None else None
                if label == "help":
                    details["help"] = str(_literal(entry, names)).replace("%%", "%")
                elif label == "choices":
                    details["choices"] = _choices(entry, names)
                elif label == "const":
                    details["bare"] = _literal(entry, names)
    return details


def _choices(entry: ast.expr, names: Mapping[str, Any]) -> tuple[str, ...] | None:
    if ast.unparse(entry) == "trainer_log_levels.keys()":
        return (*_log_levels(), "passive")
    literal = _literal(entry, names)
    return tuple(str(choice) for choice in literal) if isinstance(literal, list | tuple) else None


def _log_levels() -> list[str]:
    """Returns the names of transformers' log levels: a dict literal in its logging module."""
    text = (package_folder("transformers") / "utils/logging.py").read_text(encoding="utf-8")
    found = re.search(r"^log_levels = \{.*?^\}", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'^\s+"(\w+)":', found.group(), re.MULTILINE) if found else []


def _literal(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Returns the value of a literal, or of a name that the class body gave one; else None."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _field_type(annotation: ast.expr) -> tuple[FieldType, tuple[str, ...] | None]:
    """Returns the type of an annotation, and the values of the enumeration in it, if any."""
    kinds: set[str] = set()
    item = "str"
    choices: tuple[str, ...] | None = None
    for part in _union_parts(annotation):
        text = ast.unparse(part)
        if text in _SCALARS:
            kinds.add(_SCALARS[text])
        elif text == "dict" or text.startswith("dict["):
            kinds.add("dict")
        elif isinstance(part, ast.Subscript) and ast.unparse(part.value) == "list":
            kinds.add("list")
            item = "DatasetConfig" if ast.unparse(part.slice) == "DatasetConfig" else "str"
        elif isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Literal":
            kinds.add("bool" if ast.unparse(part.slice) in ("True", "False") else "str")
        elif text in _enums():
            kinds.add("str")
            choices = _enums()[text]
        else:
            kinds.add("other")
    return FieldType(kinds=frozenset(kinds), item=item), choices


def _union_parts(annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _union_parts(annotation.left)
        yield from _union_parts(annotation.right)
    else:
        yield annotation


@lru_cache(maxsize=1)
def _enums() -> Mapping[str, tuple[str, ...]]:
    """Returns the values of transformers' string enumerations by class name."""
    found: dict[str, tuple[str, ...]] = {}
    for file in _ENUM_FILES:
        text = (package_folder("transformers") / file).read_text(encoding="utf-8")
        for match in re.finditer(r"^class (\w+)\(ExplicitEnum\):\n", text, re.MULTILINE):
            body = re.split(r"^\S", text[match.end() :], maxsplit=1, flags=re.MULTILINE)[0]
            values = re.findall(r'^    [A-Z]\w* = "([^"]*)"', body, re.MULTILINE)
            found[match.group(1)] = tuple(values)
    return found
