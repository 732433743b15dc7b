"""The run file: `Run` is what to train, typed and frozen, in TRL's vocabulary."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sailplan.errors import RunFileError
from sailplan.hub.repository import Repository
from sailplan.run import assemble, method, sanity, saved
from sailplan.run.blocks import GenerationBlock, LaunchBlock
from sailplan.run.fields import field_table
from sailplan.run.help import script_help
from sailplan.run.slurm_block import SlurmBlock

T = TypeVar("T")

DIFFERENT_DEFAULTS: Mapping[str, Any] = {"assistant_only_loss": True, "max_length": None}
"""Where sailplan trains differently from TRL, unless the field is written."""

_TOLD = {
    "assistant_only_loss": "the loss is on the assistant's words only (TRL: on all text); "
    "write assistant_only_loss to choose",
    "max_length": "samples may be as long as the model allows (TRL: 1024 tokens); "
    "write max_length to choose",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One fine-tuning run, as its file and flags say it."""

    explicit: Mapping[str, Any] = dataclasses.field(repr=False)
    """Today's field name to typed value, of what was written and nothing else."""
    launch: LaunchBlock = dataclasses.field(default_factory=LaunchBlock)
    slurm: SlurmBlock = dataclasses.field(default_factory=SlurmBlock)
    generation: GenerationBlock = dataclasses.field(default_factory=GenerationBlock)
    env: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """Environment variables for the ranks: `env:`, and what old names became. May hold secrets."""
    accelerate: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Flags of `accelerate launch`, and `accelerate_config`, a preset's name or a file's path."""
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """What was translated or not taken as written, to be told once."""
    source: Path | None = dataclasses.field(default=None, compare=False)
    pins: Mapping[Repository, str] = dataclasses.field(default_factory=dict, compare=False)
    """The commits that took the place of revisions as written; see `run.repositories`."""

    @classmethod
    def from_file(cls, path: Path | str, overrides: Sequence[str] = ()) -> Run:
        """Reads a run file; flags such as `--learning_rate 1e-4` win over it.

        Raises:
            RunFileError: The file or a flag is wrong.
        """
        return cls(**assemble.assemble(Path(path), overrides))

    @classmethod
    def from_flags(cls, arguments: Sequence[str]) -> Run:
        """Reads a training script's flags, and settles `global_batch_size` with `WORLD_SIZE`.

        Raises:
            RunFileError: The file or a flag is wrong, or the global batch does not divide.
            SystemExit: `--help` is asked for, and has been printed.
        """
        return cls.read_flags(arguments).for_world_size(int(os.environ.get("WORLD_SIZE", "1")))

    @classmethod
    def read_flags(cls, arguments: Sequence[str]) -> Run:
        """Reads a training script's flags, `--config FILE` among them; other flags win over it.

        Raises:
            RunFileError: The file or a flag is wrong.
            SystemExit: `--help` is asked for, and has been printed.
        """
        if {"-h", "--help"} & set(arguments):
            print(script_help())
            raise SystemExit(0)
        path, flags = assemble.split_config(arguments)
        return cls(**assemble.assemble(path, flags))

    def is_set(self, name: str) -> bool:
        """Says whether the field was written."""
        return name in self.explicit

    def get(self, name: str) -> Any:
        """Returns what was written, else sailplan's default, else the installed library's."""
        if name in self.explicit:
            return copy.deepcopy(self.explicit[name])
        if name in DIFFERENT_DEFAULTS:
            return DIFFERENT_DEFAULTS[name]
        return copy.deepcopy(field_table()[name].default)

    def require(self, *names: str) -> None:
        """Refuses to go on without these fields.

        Raises:
            RunFileError: One of them has no value.
        """
        for name in names:
            if self.get(name) in (None, "", []):
                place = self.source or "the command line"
                raise RunFileError(f"{place}: {name} is missing", todo=field_table()[name].help)

    def arguments(self, cls: type[T], **values: Any) -> T:
        """Returns an instance of a dataclass such as `SFTConfig`, from what was written for it.

        Args:
            cls: The dataclass.
            values: Values that win over what was written.

        Raises:
            RunFileError: The class refuses the values.
        """
        names = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
        accumulation = "gradient_accumulation_steps"
        unsettled = self.get("global_batch_size") and not self.is_set(accumulation)
        if accumulation in names and unsettled:
            raise RuntimeError("the world size decides on accumulation: call for_world_size first")
        written = {name: self.get(name) for name in self.explicit if name in names}
        try:
            return cls(**{**written, **values})
        except (ValueError, TypeError, NotImplementedError) as error:
            raise RunFileError(f"{self.source or cls.__name__}: {error}") from error

    def for_world_size(self, world_size: int) -> Run:
        """Returns the run with the gradient accumulation that `global_batch_size` asks for.

        The global batch stays beside it: a run file is written with it alone, so that it holds on
        any number of ranks, and the ranks check that both agree.

        Raises:
            RunFileError: The global batch is no multiple of micro batch × world size, or the micro
                batch or the method is still `auto`.
        """
        method.refuse_open(self)
        if self.get("global_batch_size") is None:
            return self
        wanted, micro = self.get("global_batch_size"), self.get("per_device_train_batch_size")
        product = f"per_device_train_batch_size {micro} × {world_size} ranks"
        steps, rest = divmod(wanted, micro * world_size)
        if rest:
            got = f"global_batch_size {wanted} is no multiple of {product}"
            raise RunFileError(got, todo="change the micro batch, the ranks or the global batch")
        written = self.explicit.get("gradient_accumulation_steps", steps)
        if written != steps:
            product += f" × gradient_accumulation_steps {written}"
            got = f"global_batch_size {wanted} is not {product}"
            raise RunFileError(got, todo=f"drop one of the two, or accumulate {steps}")
        explicit = {**self.explicit, "gradient_accumulation_steps": steps}
        return dataclasses.replace(self, explicit=explicit)

    def differences(self) -> tuple[str, ...]:
        """Returns what the run may not do as its writer thinks, for the ranks to tell once.

        That is where it trains differently from TRL's defaults, and what is written in vain.
        """
        ours = [text for name, text in _TOLD.items() if not self.is_set(name)]
        return (*ours, *sanity.without_effect(self.explicit, self.get))

    def environment(self) -> dict[str, str]:
        """Returns the ranks' own variables: `env`, and the hub token that no file may hold."""
        token = self.explicit.get("hub_token")
        return {**({"HF_TOKEN": token} if token else {}), **self.env}

    def as_dict(self) -> dict[str, Any]:
        """Returns the run as a run file holds it, without secrets, local paths made absolute."""
        return {**self._flat(), **saved.blocks(self.launch, self.slurm, self.generation)}

    def run_yaml(self) -> str:
        """Returns the text of a run file from which alone the run can be launched again."""
        return saved.text(self.as_dict(), saved.left_out(self.explicit, self.env))

    def train_yaml(self) -> str:
        """Returns the flat text that the ranks read: without what only the launcher needs."""
        flat = saved.fields(self.explicit)
        return saved.text(flat, saved.left_out(self.explicit, {}))

    def _flat(self) -> dict[str, Any]:
        fields = saved.fields(self.explicit)
        if self.get("global_batch_size") is not None:
            fields.pop("gradient_accumulation_steps", None)  # another world size needs another
        if _is_said_once(fields):
            del fields["resume_from_checkpoint"]
        return {
            **fields,
            **saved.accelerate(self.accelerate),
            **saved.environment(self.env),
        }


def _is_said_once(fields: Mapping[str, Any]) -> bool:
    """Says whether the run is to begin anew or to go back, which no later launch of it repeats."""
    wanted, home = fields.get("resume_from_checkpoint"), fields.get("output_dir")
    if wanted in (None, "true"):
        return False
    return wanted == "false" or (home is not None and Path(wanted).is_relative_to(home))
