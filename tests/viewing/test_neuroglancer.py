"""Neuroglancer states: read back by the neuroglancer package's own parser."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import neuroglancer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from isochunk.core.geometry import Box, Spacing
from isochunk.core.sections import Section
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import UsageError
from isochunk.viewing.neuroglancer import (
    PUBLIC_NEUROGLANCER,
    FilledSections,
    Layer,
    contrast_range,
    layer_url,
    neuroglancer_state,
    neuroglancer_url,
)

ORIGIN = (Fraction(0),) * 3
SOURCE = VolumeSpec(
    "gs://bucket/em/source",
    "precomputed",
    "uint8",
    "raw",
    ORIGIN,
    (
        LevelSpec(
            "46_4.6_4.6",
            Box((10, 100, 200), (30, 1124, 1224)),
            Spacing.parse("46,4.6,4.6"),
            (20, 256, 256),
            None,
        ),
    ),
)
RESULT = replace(
    SOURCE,
    url="s3://other/em/result",
    levels=(
        LevelSpec(
            "4.6",
            Box((100, 100, 200), (300, 1124, 1224)),
            Spacing.parse("4.6,4.6,4.6"),
            (64, 64, 64),
            None,
        ),
    ),
)


def test_formats_that_it_does_not_read() -> None:
    for format_ in ("tiff", "hdf5", "mrc"):
        with pytest.raises(UsageError, match=rf"is {format_}, which neuroglancer does not read"):
            layer_url(replace(SOURCE, format=format_))


def opened(layers: list[Layer]) -> neuroglancer.ViewerState:
    url = neuroglancer_url(PUBLIC_NEUROGLANCER, neuroglancer_state(layers))
    assert url.startswith("https://neuroglancer-demo.appspot.com/#!")
    assert not set(url) & set(" \"'<>{}|\\^`\n"), "a link survives mails and shells"
    return neuroglancer.parse_url(url)


def test_link_opens_source_and_result_side_by_side():
    state = opened([Layer("result", RESULT, (20, 230)), Layer("source", SOURCE, (20, 230))])
    assert {layer.name: layer.source[0].url for layer in state.layers} == {
        "result": "s3://other/em/result/|neuroglancer-precomputed:",
        "source": "gs://bucket/em/source/|neuroglancer-precomputed:",
    }
    for layer in state.layers:
        assert list(layer.shader_controls["normalized"].range) == [20, 230]
        assert layer.opacity == 1
    left, right = state.layout.children
    assert [list(view.layers) for view in (left, right)] == [["result"], ["source"]]
    assert state.dimensions.names == ("x", "y", "z")
    assert state.dimensions.scales == pytest.approx([4.6e-9] * 3, rel=1e-12)
    assert list(state.position) == [712.5, 612.5, 200.5]
    # 1024 voxels, the longest side, within a panel of 400 pixels
    assert state.cross_section_scale == pytest.approx(1024 / 400)


def test_result_is_drawn_over_the_source_when_overlaid():
    state = neuroglancer_state([Layer("result", RESULT), Layer("source", SOURCE)], "overlay")
    assert [layer["name"] for layer in state["layers"]] == ["source", "result"]
    assert state["layout"] == "4panel"


@pytest.mark.parametrize(
    ("url", "format_", "expected"),
    [
        ("https://host/a/b", "zarr3", "https://host/a/b/|zarr3:"),
        ("s3+https://host/bucket/a", "zarr2", "s3+https://host/bucket/a/|zarr2:"),
        ("gs://b/a.n5", "n5", "gs://b/a.n5/|n5:"),
        ("graphene://https://host/t", "cloudvolume", "graphene://https://host/t"),
    ],
)
def test_data_source_urls(url, format_, expected):
    assert layer_url(replace(SOURCE, url=url, format=format_)) == expected


def test_what_precomputed_cannot_say_becomes_a_transform():
    corner_nm = (Fraction(-23), Fraction("-2.3"), Fraction(46))
    state = opened([Layer("result", replace(RESULT, corner_nm=corner_nm))])
    source = state.layers[0].source[0]
    assert source.transform.output_dimensions.names == ("x", "y", "z")
    np.testing.assert_allclose(
        source.transform.matrix, [[1, 0, 0, 10], [0, 1, 0, -0.5], [0, 0, 1, -5]], rtol=1e-12
    )
    assert list(state.position) == [722.5, 611.5, 195.5]


def test_lost_sections_are_boxes_of_the_source_in_every_view():
    lost = tuple(Section(z, lost=True) for z in (12, 13, 29))
    source = replace(SOURCE, corner_nm=(Fraction(-23), Fraction(0), Fraction(46)))
    layers = [Layer("result", RESULT), Layer("source", source)]
    made = neuroglancer_state(layers, filled=FilledSections(source, lost))
    state = neuroglancer.parse_url(neuroglancer_url(PUBLIC_NEUROGLANCER, made))
    assert [list(view.layers) for view in state.layout.children] == [
        ["result", "filled sections"],
        ["source", "filled sections"],
    ]
    layer = state.layers["filled sections"]
    assert layer.source[0].url == "local://annotations"
    dimensions = layer.source[0].transform.output_dimensions
    assert dimensions.names == ("x", "y", "z")
    assert dimensions.scales == pytest.approx([4.6e-9, 4.6e-9, 46e-9], rel=1e-12)
    boxes = [(box.point_a.tolist(), box.point_b.tolist()) for box in layer.annotations]
    assert boxes == [
        ([210.0, 100.0, 11.5], [1234.0, 1124.0, 13.5]),
        ([210.0, 100.0, 28.5], [1234.0, 1124.0, 29.5]),
    ]
    assert layer.annotations[0].description == "filled from neighbours: source section 12 to 13"


def test_no_lost_sections_no_layer():
    filled = FilledSections(SOURCE, ())
    layers = [Layer("result", RESULT)]
    assert neuroglancer_state(layers, filled=filled) == neuroglancer_state(layers)


def test_ome_zarr_says_itself_where_it_lies():
    ome = replace(RESULT, format="zarr3", corner_nm=(Fraction(-23),) * 3)
    assert neuroglancer_state([Layer("a", ome)])["layers"][0]["source"] == layer_url(ome)


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_layers_need_names_that_differ(names):
    with pytest.raises(UsageError, match="names that differ"):
        neuroglancer_state([Layer(name, RESULT) for name in names])


@given(arrays.arrays(np.uint16, (2, 3, 4), elements=st.integers(0, 65535)))
def test_contrast_lies_within_the_voxels_that_hold_something(voxels):
    low, high = contrast_range(voxels)
    assert high >= low + 1
    if voxels.any():
        seen = voxels[voxels > 0]
        assert seen.min() <= low <= seen.max()
        assert high <= max(seen.max(), low + 1)


def test_contrast_leaves_out_background_and_outliers():
    voxels = np.zeros((10, 100, 100), np.uint8)
    voxels[2:8] = np.random.default_rng(0).integers(100, 151, (6, 100, 100))
    voxels[2, 0, :5] = 255
    low, high = contrast_range(voxels)
    assert (low, high) == pytest.approx((100, 150), abs=1)
