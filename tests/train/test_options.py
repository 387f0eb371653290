"""Options of ``isochunk train`` are fields; their help is the docstring below the field."""

from __future__ import annotations

from dataclasses import fields

import pytest

from isochunk.models.registry import NETWORKS, config_type
from isochunk.train.config import TrainConfig
from isochunk.train.options import NETWORK_OPTIONS, TRAIN_OPTIONS, TRAIN_PARTS
from isochunk.train.presets import PARTS


def test_options_of_a_training_are_its_marked_fields() -> None:
    assert set(TRAIN_OPTIONS) == {
        *("arch", "factor", "mode", "degradation", "steps", "out", "device", "precision", "seed"),
        *("patch", "batch", "start", "encoder", "licence", "trained-on", "grey-window"),
        *("sections", "hardest-of"),
    }
    names = {field.name for field in fields(TrainConfig)}
    assert {name.replace("-", "_") for name in TRAIN_OPTIONS} - names == {"arch", "factor"}
    assert TRAIN_OPTIONS["arch"].startswith(
        "a2i, anyz, diffusion, fsrcnn, srunet, niiv, pssr, pssr-mf, pssr-z, srmd"
    )
    assert TRAIN_OPTIONS["mode"].startswith("supervised: ")
    assert TRAIN_OPTIONS["seed"] == "seed of the initial weights and of every crop"


def test_options_of_its_tables_name_table_and_field() -> None:
    assert set(TRAIN_PARTS) == {
        *("lr", "optimiser", "vgg", "dists", "validate-every", "save-every"),
        *("slices", "slices-steps", "isotropic", "box"),
    }
    assert TRAIN_PARTS["save-every"][:2] == ("keeping", "save_every")
    assert TRAIN_PARTS["lr"][2].startswith("learning rate")
    for part, field, _ in TRAIN_PARTS.values():
        assert field in {f.name for f in fields(PARTS[part])}


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_hyperparameter_is_an_option_or_for_recipes_only(arch: str) -> None:
    cls = config_type(arch)
    names = {field.name for field in fields(cls)}
    assert set(cls.RECIPE_ONLY) <= names
    for name in names - set(cls.RECIPE_ONLY):
        assert arch in NETWORK_OPTIONS[name]


def test_help_says_what_an_option_is_to_each_network() -> None:
    assert NETWORK_OPTIONS["window"].startswith("a2i: side of an attention window, at every level")
    assert NETWORK_OPTIONS["width"].startswith("srunet, a2i: feature maps at the finest level")
    assert "; pssr, pssr-z: feature maps of the first layer; " in NETWORK_OPTIONS["width"]
    assert NETWORK_OPTIONS["variant"].startswith("fsrcnn, srunet: kernels: paper, compact, planar")


def test_names_are_of_one_option_alone() -> None:
    names = [*TRAIN_OPTIONS, *TRAIN_PARTS, *NETWORK_OPTIONS]
    assert len(names) == len(set(names))
