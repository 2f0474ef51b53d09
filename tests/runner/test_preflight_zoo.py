"""The checks without weights against the model itself, on every architecture of the zoo."""

from __future__ import annotations

import pytest
from helpers.architectures import ALL, TRAINED, make_config, make_zoo_model
from helpers.journey import METHODS, method_config, tokenizer
from helpers.marks import LONG, SLOW

from hylorada.config import ModelConfig, RunConfig
from hylorada.errors import HyloradaError
from hylorada.loading.backbone import Blueprint
from hylorada.methods import adapt
from hylorada.methods.adaptive_rule import from_method
from hylorada.methods.position_range import extend_range
from hylorada.runner.preflight import _check_method
from hylorada.training.loss import refuse_adapted_head


def attach(model, method, length):
    config = from_method(method, length, model.config)
    if config is None:
        wanted = method.position_range
        extend_range(model, length, wanted.learned_init, wanted.rope_type, wanted.rope_factor)
    else:
        refuse_adapted_head(adapt(model, config, length, seed=0))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "families",
    [pytest.param(tuple(ALL)[::4], marks=SLOW), pytest.param(tuple(ALL), marks=LONG)],
    ids=["one in four", "all"],
)
def test_what_is_refused_without_weights_is_refused_with_them_for_the_same_reason(name, families):
    missed = set()
    for family in families:
        said = []
        for length in (TRAINED, 2 * TRAINED):
            model = make_zoo_model(family)
            attention = model.config._attn_implementation or "eager"
            config = RunConfig(model=ModelConfig("zoo", "zoo", attn_implementation=attention))
            config.method, config.length.max_length = method_config(name), length
            opened = Blueprint("zoo", "folder", make_config(family), tokenizer(), {})
            for call in (
                lambda model=model, length=length: attach(model, method_config(name), length),
                lambda config=config, opened=opened: _check_method(config, opened),
            ):
                try:
                    call()
                    said.append("")
                except HyloradaError as error:
                    said.append(str(error))
        for real, early in zip(said[::2], said[1::2], strict=True):
            assert early in ("", real), family
            if real and not early:
                missed.add(family)
    # What only weights tell is found before anything is measured all the same.
    assert len(missed) <= 2, missed
