"""Small copies of public models: their own modules, a hundredth of their size."""

from __future__ import annotations

import pytest
import torch
from transformers.initialization import no_init_weights

from sailplan.model.load import classes
from sailplan.model.published import names, published
from sailplan.plan.simulation.depth import config_of
from sailplan.preflight.model.small import MOST_BYTES, small_config


@pytest.mark.parametrize("name", names())
def test_small_copy_has_the_modules_of_the_model_and_fits_any_machine(name: str) -> None:
    known = published(name)
    assert known is not None
    whole = config_of(known.config)
    small = small_config(whole)
    built = []
    for config in (whole, small):
        auto_class, _ = classes(config, name)
        with torch.device("meta"), no_init_weights():
            built.append(auto_class.from_config(config))
    of_whole, of_small = ({name for name, _ in one.named_parameters()} for one in built)
    assert of_small <= of_whole
    assert 4 * built[1].num_parameters() < MOST_BYTES
    text, own = small.get_text_config(), whole.get_text_config()
    assert text.num_hidden_layers <= own.num_hidden_layers
    assert text.vocab_size == own.vocab_size
    kinds = getattr(own, "layer_types", None)
    assert not kinds or set(text.layer_types) == set(kinds)
    if own.num_attention_heads > 2:
        assert built[1].num_parameters() < built[0].num_parameters()
