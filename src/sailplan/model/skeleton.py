"""A model without weights: its modules, names and shapes, in no memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sailplan.model.folder import check_folder, explain
from sailplan.model.load import classes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def skeleton(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Returns the model that a folder's config describes, on the meta device.

    Args:
        folder: Holds a `config.json`.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelError: There is no config, or it describes no model that can be trained.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    check_folder(str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        saved = (config.architectures or [""])[0]
        own = getattr(transformers, saved, None)
        config.quantization_config = None  # of the weights, not of the modules
        del config.quantization_config
        with torch.device("meta"):
            if own is not None and own.config_class is type(config):
                return own(config)
            auto_class, _ = classes(config, str(folder))
            return auto_class.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise explain(error, str(folder), "config") from error
