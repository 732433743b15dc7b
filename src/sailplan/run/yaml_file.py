"""Reads a run file: safe YAML, with line numbers, duplicate keys refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from sailplan.errors import RunFileError
from sailplan.run.values import Entry, Raw, Scalar

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C where libyaml is there
_constructor = yaml.constructor.SafeConstructor()

_MAX_VALUES = 100_000
"""More than any run file holds, and little enough to be read at once."""

_MERGE = "tag:yaml.org,2002:merge"


def read_entries(path: Path, *, blocks: Collection[str] = ()) -> list[Entry]:
    """Returns the settings of a run file in their order.

    Args:
        path: The file.
        blocks: Mappings whose settings come one by one, as `block.name`; one in another is
            named so as well.

    Raises:
        RunFileError: The file is missing, unreadable, not YAML, not a mapping, or has a key twice.
    """
    root = _compose(path)
    if not isinstance(root, yaml.MappingNode):
        got = "is empty" if root is None else f"holds {_kind(root)}, not settings"
        raise RunFileError(f"{path} {got}", allowed="`name: value` lines")
    try:
        if _size(root, {}) > _MAX_VALUES:
            raise RunFileError(f"{path}: its aliases unfold to more than {_MAX_VALUES} values")
        return list(_entries(root, path, blocks))
    except RecursionError:  # an alias that holds itself
        raise RunFileError(f"{path}: nested too deeply") from None


def _entries(root: yaml.MappingNode, path: Path, blocks: Collection[str]) -> Iterator[Entry]:
    for name, (node, line) in _pairs(root, path).items():
        if name in blocks and isinstance(node, yaml.MappingNode):
            inside = f"{name}."
            below = [block[len(inside) :] for block in blocks if block.startswith(inside)]
            for entry in _entries(node, path, below):
                yield Entry(name=f"{name}.{entry.name}", raw=entry.raw, where=entry.where)
        else:
            yield Entry(name=name, raw=_raw(node, path), where=f"{path}:{line}")


def _compose(path: Path) -> yaml.Node | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RunFileError(f"no run file {path}", todo="check the path") from None
    except IsADirectoryError:
        todo = "name a file in it, such as run.yaml"
        raise RunFileError(f"{path} is a directory, not a run file", todo=todo) from None
    except UnicodeDecodeError:
        raise RunFileError(f"{path} is not UTF-8 text", allowed="a YAML file") from None
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror}") from None
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = error.problem or error.context
        raise RunFileError(f"{path}{line}: not YAML, {problem}") from None
    except yaml.YAMLError as error:
        raise RunFileError(f"{path}: not YAML, {error}") from None
    except RecursionError:
        raise RunFileError(f"{path}: nested too deeply") from None
    return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Counts the values below a node, each alias in full."""
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            below = [value for _, value in node.value]
        known[id(node)] = 1 + sum(_size(child, known) for child in below)
    return known[id(node)]


def _pairs(node: yaml.MappingNode, path: Path) -> dict[str, tuple[yaml.Node, int]]:
    """Returns a mapping's values and lines by key; its own keys win over those merged by `<<`."""
    own: dict[str, tuple[yaml.Node, int]] = {}
    merged: dict[str, tuple[yaml.Node, int]] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    got = f"{path}:{line}: << is {_kind(source)}"
                    raise RunFileError(got, allowed="a mapping")
                merged = _pairs(source, path) | merged
        elif not isinstance(key, yaml.ScalarNode):
            raise RunFileError(f"{path}:{line}: a key is {_kind(key)}", allowed="a name")
        elif key.value in own:
            got = f"{path}:{line}: {key.value} is written twice"
            raise RunFileError(got, todo=f"first in line {own[key.value][1]}; keep one")
        else:
            own[key.value] = (value, line)
    return merged | own


def _raw(node: yaml.Node, path: Path) -> Raw:
    if isinstance(node, yaml.SequenceNode):
        return [_raw(item, path) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key: _raw(value, path) for key, (value, _) in _pairs(node, path).items()}
    try:
        value = _constructor.construct_object(node)
    except (yaml.YAMLError, ValueError):
        got = f"{path}:{node.start_mark.line + 1}: {node.tag} {node.value!r}"
        raise RunFileError(got, allowed="plain YAML values") from None
    return Scalar(text=node.value, value=value)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a text"
