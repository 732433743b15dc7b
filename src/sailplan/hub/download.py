"""Downloads what is needed of a model's repository at one commit into the hub's cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sailplan.errors import ModelError
from sailplan.hub.cache import CONFIG, TOKENIZERS, WEIGHTS, index_of, shards_of
from sailplan.hub.errors import explain, missing
from sailplan.hub.repository import Repository, is_offline
from sailplan.progress import track_bytes

_SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_OTHERS_INDEXES = ("pytorch_model.bin", "model.safetensors", "tf_model.h5", "flax_model.msgpack")
_ADAPTER = "adapter_config.json"
_TEMPLATES = "additional_chat_templates/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """The files that are needed of a model's repository, at one commit."""

    repository: Repository
    commit: str
    sizes: Mapping[str, int]
    """Bytes of each file, by its path in the repository."""

    @property
    def folder(self) -> Path:
        """Where they lie in the hub's cache."""
        return self.repository.snapshot(self.commit)

    @property
    def num_bytes(self) -> int:
        """Their bytes together."""
        return sum(self.sizes.values())

    @property
    def absent(self) -> dict[str, int]:
        """Returns those that are not in the cache yet, with their bytes."""
        return {n: size for n, size in self.sizes.items() if not (self.folder / n).exists()}


def needed(
    repository: Repository, commit: str, *, weights: bool = True, code: bool = False
) -> Needed:
    """Asks the hub which files of a model are needed, and how large they are.

    Of weights in several formats the one is taken that transformers loads: safetensors, else
    PyTorch's own. Files for other libraries, checkpoints in subfolders and pages are left out.

    Args:
        repository: The model.
        commit: Which commit of it.
        weights: Take the weights too, not the processor alone.
        code: Take the repository's Python files too.

    Raises:
        ModelError: It may not be read, or holds no model or no processor.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository.name, revision=commit, files_metadata=True)
    except Exception as error:
        raise _one_line(error, repository) from error
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    return choose(repository, commit, sizes, weights=weights, code=code)


def choose(
    repository: Repository, commit: str, sizes: Mapping[str, int], *, weights: bool, code: bool
) -> Needed:
    """Returns which of a repository's files are needed; see `needed`."""
    suffixes = (*_SMALL, ".py") if code else _SMALL
    indexes = [index_of(name) for name in _OTHERS_INDEXES]
    chosen = [
        name
        for name in sizes
        if (name.endswith(suffixes) and "/" not in name and name not in indexes)
        or (name.startswith(_TEMPLATES) and name.endswith(".jinja"))
    ]
    if weights and CONFIG not in sizes:
        got = f"{repository} holds {'an adapter, not a model' if _ADAPTER in sizes else 'no model'}"
        todo = f"name its base model (base_model_name_or_path in {_ADAPTER})"
        raise ModelError(got, todo=todo if _ADAPTER in sizes else "check model_name_or_path")
    if not weights and not set(TOKENIZERS) & sizes.keys():
        raise ModelError(f"{repository} holds no processor or tokenizer", todo="check the name")
    if weights:
        chosen += _weights(repository, commit, sizes)
    return Needed(
        repository=repository, commit=commit, sizes={name: sizes[name] for name in sorted(chosen)}
    )


def _weights(repository: Repository, commit: str, sizes: Mapping[str, int]) -> list[str]:
    for name in WEIGHTS:
        if name in sizes:
            return [name]
        if index_of(name) in sizes:
            index = _get(repository, commit, index_of(name), None)
            shards = shards_of(index.read_text(encoding="utf-8"))
            absent = [shard for shard in shards if shard not in sizes]
            if absent or not shards:
                got = f"{repository} lacks {absent[0] if absent else 'the weights'}"
                raise ModelError(f"{got}, which its {index_of(name)} lists")
            return [index_of(name), *shards]
    raise ModelError(
        f"{repository} holds no weights", allowed=" or ".join(WEIGHTS), todo="name another model"
    )


def download(wanted: Needed) -> int:
    """Downloads what is not in the cache yet, with a bar; returns its bytes.

    What is cut off by an error is kept, and goes on from there next time.

    Raises:
        ModelError: The hub, the network or the disk is in the way.
    """
    absent = wanted.absent
    with track_bytes(wanted.repository.name, total=sum(absent.values())) as advance:
        for name in absent:
            _get(wanted.repository, wanted.commit, name, advance)
    reference = wanted.repository.folder / "refs" / wanted.repository.revision
    if wanted.repository.revision != wanted.commit:  # for those who load it without its commit
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(wanted.commit, encoding="utf-8")
    return sum(absent.values())


def _get(
    repository: Repository, commit: str, name: str, advance: Callable[[float], None] | None
) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            repository.name, name, revision=commit, tqdm_class=_bar(advance) if advance else None
        )
    except Exception as error:
        raise _one_line(error, repository) from error
    return Path(path)


def _bar(advance: Callable[[float], None]) -> Any:
    """Returns a class that the hub's library takes for tqdm, of which only the bytes are told."""

    class Bar:
        def __init__(self, *_: Any, initial: float = 0, **__: Any) -> None:
            self.update(initial)

        def update(self, count: float | None = 1) -> None:
            advance(count or 0)

        def update_transfer(self, count: float | None = 1) -> None:
            """Counts nothing twice."""

        def set_postfix_str(self, *_: Any, **__: Any) -> None:
            """Says nothing."""

        set_transfer_postfix_str = set_description = close = refresh = set_postfix_str

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            """Leaves nothing open."""

    return Bar


def _one_line(error: Exception, repository: Repository) -> Exception:
    if is_offline():
        return missing(repository)
    return explain(error, repository) or error
