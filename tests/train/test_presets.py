"""How each paper trains, as the defaults of its architecture; rates as functions of the step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from isochunk.errors import UsageError
from isochunk.models.pssr import PSSRConfig
from isochunk.models.registry import make
from isochunk.train.config import Optimisation
from isochunk.train.encoder import load_encoder, their_name
from isochunk.train.options import parse_value, with_options, with_sources
from isochunk.train.presets import PRESETS, config_from_table, read_recipe
from isochunk.train.schedule import one_cycle, rates, scheduled_stages

PAPERS_OWN = ("a2i", "niiv", "pssr", "pssr-z", "swinir", "srmd")
AT_ANY_RATIO = ("niiv", "anyz", "swinir", "srmd", "pssr-z", "diffusion")


@pytest.mark.parametrize("arch", PRESETS)
def test_every_architecture_trains_as_its_paper_says_by_default(arch):
    paper = config_from_table(
        {"arch": arch, "sources": ["a"], "out": "b"}
        | ({"factor": 8} if arch in AT_ANY_RATIO else {})
    )
    wanted = {
        "srunet": ("supervised", "avg", 6, "mse", "none", "sqrt", 1e-4),
        "fsrcnn": ("supervised", "avg", 6, "mse", "none", "sqrt", 1e-4),
        "a2i": ("self", "avg", 8, "l1", "pdl", "constant", 1e-4),
        "niiv": ("self", "avg", 8, "l1", "dists", "constant", 5e-5),
        "anyz": ("supervised", "avg", 8, "mse", "none", "sqrt", 2e-3),
        "swinir": ("supervised", "avg", 8, "l1", "none", "sqrt", 2e-4),
        "diffusion": ("supervised", "avg", 16, "mse", "none", "sqrt", 1e-3),
        "srmd": ("supervised", "avg", 16, "mse", "none", "sqrt", 1e-3),
        "pssr": ("supervised", "em", 8, "mse", "none", "onecycle", 1e-3),
        "pssr-z": ("supervised", "avg", 8, "mse", "none", "onecycle", 1e-3),
        "pssr-mf": ("supervised", "fluorescence", 8, "mse", "none", "onecycle", 4e-4),
    }[arch]
    told = (paper.mode, paper.degradation, paper.batch, paper.loss.pixel, paper.loss.perceptual)
    assert (*told, paper.optimisation.schedule, paper.optimisation.lr) == wanted
    weighed = {"a2i": (1, 0.01), "niiv": (30, 1)}.get(arch, (1, 0))
    assert (paper.loss.weight, paper.loss.perceptual_weight) == weighed
    assert paper.network == type(paper.network)() if arch in PAPERS_OWN else True


def test_stages_of_pssr_grow_crops_and_thaw_the_encoder():
    paper = config_from_table({"arch": "pssr", "sources": ["a"], "out": "b", "steps": 37_000})
    laid = scheduled_stages(paper)
    assert [span.stage.patch[1] for span in laid] == [128, 128, 256, 256, 512, 512]
    assert [span.stage.batch for span in laid] == [64, 64, 16, 16, 8, 8]
    assert [span.stop - span.first for span in laid] == [500, 500, 6000, 6000, 12000, 12000]
    assert laid[-1].stop == 37_000
    frozen = rates(paper, laid[0].first + 150, 3)
    assert frozen.groups[:2] == (0, 0)
    assert frozen.groups[2] == pytest.approx(1e-3, rel=0.01)  # where the cycle is highest
    first, second, last = rates(paper, laid[1].first + 150, 3).groups
    assert (second / first, last / second) == (pytest.approx(10), pytest.approx(10))
    assert rates(paper, 36_999, 3).groups[2] < 1e-9


def test_one_cycle_goes_up_and_down_and_momentum_the_other_way():
    cycle = [one_cycle(step, 101) for step in range(101)]
    rate, momentum = zip(*cycle, strict=True)
    assert rate[0] == pytest.approx(1 / 25)
    assert int(np.argmax(rate)) == int(np.argmin(momentum)) == 30
    assert max(rate) == 1
    assert rate[-1] == pytest.approx(1 / 2.5e5)
    assert (momentum[0], momentum[30], momentum[-1]) == pytest.approx((0.95, 0.85, 0.95))


def test_groups_of_pssr_hold_every_parameter_once():
    network = make(config_from_table({"arch": "pssr", "sources": ["a"], "out": "b"}).network)
    held = [id(p) for group in network.parameter_groups() for p in group]
    assert len(network.parameter_groups()) == 3
    assert sorted(held) == sorted(id(p) for p in network.parameters())


def test_constant_rates_and_words_of_the_command_line():
    steady = config_from_table({"arch": "a2i", "sources": ["a"], "out": "b"})
    assert {rates(steady, step, 1).groups for step in (0, 10, 199_999)} == {(1e-4,)}
    assert steady.optimisation == Optimisation(lr=1e-4, schedule="constant")
    assert [parse_value(text) for text in ("32", "true", "1,2,4", "cubic", "3e-4")] == [
        32,
        True,
        [1, 2, 4],
        "cubic",
        3e-4,
    ]


def test_options_win_over_the_recipe_and_fill_its_tables():
    recipe = {"arch": "niiv", "network": {"blocks": 6}, "loss": {"weight": 2.0}, "steps": 10}
    options = {
        "steps": "20",
        "blocks": "4",
        "residual": "true",
        "vgg": "some/file",
        "lr": "1e-3",
        "factor": "2,5/2",
        "patch": "64,1,64",
        "out": "12",
        "save-every": "7",
    }
    table = with_options({**recipe, "sources": ["a"]}, options)
    made = config_from_table(table)
    assert (made.steps, made.out, made.patch) == (20, "12", (64, 1, 64))
    assert (made.network.blocks, made.network.residual, made.network.hidden) == (4, True, 256)
    assert (made.loss.weight, made.loss.vgg, made.loss.perceptual) == (2.0, "some/file", "dists")
    assert [str(factor) for factor in made.factors] == ["2", "5/2"]
    assert (made.optimisation.lr, made.keeping.save_every) == (1e-3, 7)
    assert recipe["network"] == {"blocks": 6}


@pytest.mark.parametrize("sections", [0, 2])
def test_the_encoder_starts_from_a_file(sections, tmp_path):
    network = make(PSSRConfig(sections=sections, width=4, depths=(1, 1, 1, 1)))
    names = {
        "stem.0.weight": "conv1.weight",
        "stem.1.running_var": "bn1.running_var",
        "stages.0.0.body.3.weight": "layer1.0.conv2.weight",
        "stages.3.0.body.1.bias": "layer4.0.bn1.bias",
        "stages.2.0.short.0.weight": "layer3.0.downsample.0.weight",
    }
    assert {name: their_name(name) for name in names} == names
    encoder = {
        name: value
        for name, value in network.state_dict().items()
        if name.startswith(("stem", "stages")) and "num_batches" not in name
    }
    theirs = {their_name(n): torch.rand(v.shape) for n, v in encoder.items()}
    theirs["conv1.weight"] = torch.rand(4, 3, 7, 7)
    theirs["fc.bias"] = torch.zeros(1000)
    torch.save(theirs, tmp_path / "resnet.pth")
    load_encoder(network, tmp_path / "resnet.pth")
    state = network.state_dict()
    for name in encoder:
        if name != "stem.0.weight":
            assert torch.equal(state[name], theirs[their_name(name)])
    stem = state["stem.0.weight"]
    torch.testing.assert_close(stem.sum(1), theirs["conv1.weight"].sum(1))
    del theirs["layer4.0.bn1.bias"]
    torch.save(theirs, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"layer4\.0\.bn1\.bias of .* is missing"):
        load_encoder(network, tmp_path / "other.pth")


def test_what_a_recipe_says_of_its_own_volumes_is_not_said_of_others():
    recipe = read_recipe("niiv-z2-10")
    assert {"name", "licence", "trained_on"} <= recipe.keys()
    table = with_sources(recipe, ["mine"])
    assert table["sources"] == ["mine"]
    assert recipe.keys() - table.keys() == {"name", "licence", "trained_on"}


def test_a_recipe_may_be_like_another(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('like = "srunet-z4"\nsteps = 9\n[optimisation]\nlr = 1e-4\n')
    both = [config_from_table(read_recipe(name)) for name in (str(mine), "srunet-z4")]
    changed = replace(both[1].optimisation, lr=1e-4)
    assert both[0] == replace(both[1], steps=9, optimisation=changed)


def test_a_recipe_that_is_like_itself_is_refused(tmp_path):
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(f'like = "{other}"')
    other.write_text(f'like = "{one}"')
    with pytest.raises(UsageError, match=r"one.toml' is like itself: .*one.* is like .*other"):
        read_recipe(str(one))
    other.write_text('like = "no-such"')
    with pytest.raises(UsageError, match="no recipe 'no-such'"):
        read_recipe(str(one))


@pytest.mark.parametrize("arch", ["srunet", "fsrcnn", "anyz", "niiv", "a2i"])
def test_large_recipes_grow_on_the_crops_of_what_is_shipped(arch):
    shipped = {"srunet": "srunet-z4", "fsrcnn": "fsrcnn-z4"}.get(arch, f"{arch}-z2-10")
    small, large, largest = (
        config_from_table(read_recipe(name))
        for name in (shipped, f"{arch}-large", f"{arch}-largest")
    )
    work = [config.steps * config.batch for config in (small, large, largest)]
    assert work == sorted(work)
    sizes = [
        sum(p.numel() for p in make(config.network).parameters())
        for config in (small, large, largest)
    ]
    assert sizes == sorted(set(sizes))
    for config in (large, largest):
        assert (config.sources, config.factors) == (small.sources, small.factors)
        assert (config.precision, config.device) == ("bf16", "cuda")
        assert config.augmentation == small.augmentation
