"""What can be told in milliseconds, before any process is started. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sailplan.data import local
from sailplan.hub.access import check_push
from sailplan.hub.cache import lacking
from sailplan.hub.errors import missing
from sailplan.hub.repository import is_offline
from sailplan.model.folder import check_files, check_folder, check_path
from sailplan.run.config import Run
from sailplan.run.directory import RunDirectory
from sailplan.run.repositories import uses


def check(run: Run) -> None:
    """Refuses a run whose local model, data or checkpoint is not there, or not what it should be.

    A name that may be a hub repository is left to the ranks, and so is what only the libraries
    that read a file can tell.

    Raises:
        RunFileError: No model or no data is named, or a folder of the run file is missing.
        ModelError: The model is a local path without a model, or with a broken one.
        DataError: The data is a local path without data, or a web page or a pointer in its place.
    """
    run.require("model_name_or_path", *([] if run.get("datasets") else ["dataset_name"]))
    model, processor = run.get("model_name_or_path"), run.get("processor_name_or_path")
    check_folder(model)
    check_files(model)
    if processor:
        check_path(processor)
    for name in _data_names(run):
        local.glance(name)
    local.image_root(run)
    RunDirectory.of(run).named_checkpoint(run)


def check_hub(run: Run) -> None:
    """Refuses a run whose model or data is not here while the hub is switched off, or a vain push.

    Raises:
        RunFileError: `push_to_hub` without a hub or a token.
        ModelError: A model or processor is not in the cache, or a piece of it.
        DataError: A dataset is not.
    """
    environment = {**os.environ, **run.environment()}
    if run.get("push_to_hub"):
        check_push(environment)
    for use in uses(run) if is_offline(environment) else ():
        absent = lacking(use.repository, weights=use.needs_weights)
        if absent is not None:
            raise missing(use.repository, what=absent, run_file=run.source or "RUN")


def _data_names(run: Run) -> Iterator[str]:
    for entry in run.get("datasets") or [{"path": run.get("dataset_name")}]:
        if not entry.get("data_files"):  # else the path may be the name of a kind of file
            yield str(entry["path"])
