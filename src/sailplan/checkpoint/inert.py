"""Reads pickles as data: nothing that a pickle names is ever imported or called.

`torch.load` needs the classes of whoever wrote a checkpoint (DeepSpeed's loss scaler, its
configuration), and runs what a pickle tells it to. Here each class that a pickle names becomes a
new, empty one of the same name, which keeps what it is given. What no checkpoint has reason to name
(`os.system`, `builtins.eval`) is refused by name.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

from sailplan.checkpoint.stored import ITEM_BYTES, StoredTensor
from sailplan.errors import CheckpointError

Locate = Callable[[str, str, int], StoredTensor]
"""Finds a storage: key, dtype and elements in, the storage as one flat tensor out."""

_TRUSTED_PACKAGES = frozenset(
    {"torch", "deepspeed", "transformers", "accelerate", "peft", "trl", "numpy", "sailplan"}
)
"""Whose names a checkpoint may hold; they become inert objects."""

_HARMLESS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "slice"): slice,
    ("builtins", "bytearray"): bytearray,
    ("torch", "Size"): tuple,
}

_PLAIN_CLASSES = frozenset(
    {
        ("argparse", "Namespace"),
        ("collections", "defaultdict"),
        ("collections", "Counter"),
        ("collections", "deque"),
        ("pathlib", "Path"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("enum", "EnumMeta"),
        ("functools", "partial"),
        ("types", "SimpleNamespace"),
        ("_codecs", "encode"),
        *(("builtins", name) for name in ("list", "dict", "tuple", "int", "float", "str", "bool")),
        ("builtins", "object"),
        ("copyreg", "_reconstructor"),
    }
)
"""Of the standard library, what a checkpoint may name; it becomes inert too."""

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}


class Inert(dict[Any, Any]):
    """What an object of a pickle has become: its class's name, its arguments and its state."""

    qualified_name = ""
    """Module and name of the class."""
    args: tuple[Any, ...] = ()
    """What it was made with."""
    state: Any = None
    """What was set on it."""

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        """Makes the object, with what its class or function would have been called with."""
        made = super().__new__(cls)
        made.args = args
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.items_list: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Keeps an item of what was a list."""
        self.items_list.append(item)

    def extend(self, items: Any) -> None:
        """Keeps items of what was a list."""
        self.items_list.extend(items)

    def add(self, item: Any) -> None:
        """Keeps an item of what was a set."""
        self.items_list.append(item)

    def __hash__(self) -> int:  # type: ignore[override]  # some are keys of dictionaries
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class InertUnpickler(pickle.Unpickler):
    """An unpickler that makes tensors into `StoredTensor` and everything else inert.

    Args:
        file: The pickle.
        locate: Finds a storage.
        label: What errors call the file.
    """

    def __init__(self, file: IO[bytes], locate: Locate, *, label: str) -> None:
        super().__init__(file)
        self._locate, self._label = locate, label
        self._rebuilders: Mapping[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._typed_tensor,
            ("builtins", "getattr"): self._member,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch._utils", "_rebuild_parameter_with_state"): _first,
            ("torch._tensor", "_rebuild_from_type_v2"): lambda make, _kind, args, _state: make(
                *args
            ),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the pickle; never the thing itself.

        Raises:
            CheckpointError: No checkpoint has reason to hold that name.
        """
        # Pickles of protocol 2, which torch writes, name Python 2's modules.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        known = (module, name)
        if known in self._rebuilders:
            return self._rebuilders[known]
        if known in _HARMLESS:
            return _HARMLESS[known]
        if module == "torch" and name in ITEM_BYTES:
            return name
        if _is_trusted(module) or known in _PLAIN_CLASSES:
            return type(name, (Inert,), {"qualified_name": f"{module}.{name}"})
        raise self._refusal(f"{module}.{name}")

    def _refusal(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._label} names {name}, which a checkpoint has no reason to call; "
            "nothing was run",
            todo="do not load it with torch.load either, and ask where it came from",
        )

    def _member(self, owner: Any, name: Any) -> Inert:
        """Returns what stands for a member of an enumeration, as Python before 3.11.4 writes it.

        Raises:
            CheckpointError: It is an attribute of anything else.
        """
        if not (
            isinstance(owner, type)
            and issubclass(owner, Inert)
            and _is_trusted(owner.qualified_name)
            and isinstance(name, str)
        ):
            raise self._refusal("builtins.getattr")
        return owner(name)

    def persistent_load(self, pid: Any) -> StoredTensor:
        """Returns a storage: `("storage", type, key, device, elements[, view])`."""
        kind, storage_type, key, _device, count, *_view = pid
        if kind != "storage":
            raise CheckpointError(f"{self._label} refers to a {kind!r}, not to a storage")
        name = getattr(storage_type, "qualified_name", str(storage_type)).rpartition(".")[2]
        if name not in _STORAGES:
            raise CheckpointError(f"{self._label} holds a {name}", allowed=", ".join(_STORAGES))
        return self._locate(str(key), _STORAGES[name], int(count))

    def _tensor(
        self,
        storage: StoredTensor,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        *_: Any,
    ) -> StoredTensor:
        return self._view(storage, storage.dtype, offset, shape, stride)

    def _typed_tensor(
        self,
        storage: StoredTensor,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        _requires_grad: bool,
        _hooks: Any,
        dtype: str,
        *_: Any,
    ) -> StoredTensor:
        return self._view(storage, dtype, offset, shape, stride)

    def _view(
        self,
        storage: StoredTensor,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
    ) -> StoredTensor:
        item_bytes = ITEM_BYTES[dtype]
        tensor = StoredTensor(
            file=storage.file,
            offset=storage.offset + offset * item_bytes,
            dtype=dtype,
            shape=tuple(shape),
            stride=tuple(stride),
        )
        if offset < 0 or (offset + tensor.span) * item_bytes > storage.num_bytes:
            raise CheckpointError(
                f"{self._label}: a tensor of shape {tensor.shape} reaches beyond its storage of "
                f"{storage.num_bytes} bytes",
                todo="the file is corrupt: get it again",
            )
        return tensor


def _first(value: Any, *_: Any) -> Any:
    return value


def _is_trusted(name: str) -> bool:
    return name.partition(".")[0] in _TRUSTED_PACKAGES
