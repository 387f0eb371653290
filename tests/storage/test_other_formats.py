"""Volumes that others wrote: real sections, axes in any order, plain zarr, n5."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr
from cloudvolume import CloudVolume

from isochunk.core.geometry import Box, Spacing
from isochunk.errors import UsageError
from isochunk.storage.access import Access
from isochunk.storage.keys import object_keys
from isochunk.storage.open import check_supported, open_volume

SPACING = Spacing.parse("46,4.6,4.6")


def test_real_sections_open(shared_data):
    volume = open_volume(str(shared_data / "vnc_sstem"))
    assert volume.spec.format == "precomputed"
    assert volume.spec.box == Box((0, 0, 0), (20, 1024, 1024))
    assert volume.spec.spacing == SPACING
    assert volume.spec.levels[0].chunk == (20, 256, 256)
    check_supported(volume.spec)
    box = Box((3, 250, 300), (9, 263, 317))
    reference = CloudVolume(f"precomputed://file://{shared_data}/vnc_sstem", progress=False)
    expected = np.asarray(reference[300:317, 250:263, 3:9])[..., 0].T
    np.testing.assert_array_equal(volume.read(box), expected)


def test_real_ome_zarr_opens(shared_data):
    path = shared_data / "medulla_fibsem_250.ome.zarr"
    volume = open_volume(str(path))
    assert volume.spec.format == "zarr3"
    assert volume.spec.encoding == "zstd"
    assert volume.spec.spacing == Spacing.parse("10,10,10")
    assert volume.spec.corner_nm == (-5, -5, -5)  # no translation: voxel 0 is centred at 0
    assert volume.spec.levels[0].chunk == (50, 50, 50)
    assert volume.spec.levels[0].shard == (250, 250, 250)
    expected = zarr.open_array(path / "0", mode="r")[40:61, 199:210, 0:7]
    np.testing.assert_array_equal(volume.read(Box((40, 199, 0), (61, 210, 7))), expected)


@pytest.mark.parametrize("axes", ["tczyx", "czyx", "xyz", "zyxc"])
def test_axes_in_any_order_with_single_channels(tmp_path, axes):
    sizes = {"t": 1, "c": 1, "z": 4, "y": 5, "x": 6}
    data = np.arange(120, dtype=np.uint16).reshape(4, 5, 6)
    root = zarr.open_group(tmp_path / "v", mode="w", zarr_format=2)
    array = root.create_array(
        "s0",
        shape=[sizes[a] for a in axes],
        chunks=[min(sizes[a], 4) for a in axes],
        dtype="uint16",
    )
    kept = [a for a in axes if a in "zyx"]
    array[:] = data.transpose(["zyx".index(a) for a in kept]).reshape(array.shape)
    root.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [
                {"name": a, "type": "space", "unit": "micrometer"}
                if a in "zyx"
                else {"name": a, "type": "time" if a == "t" else "channel"}
                for a in axes
            ],
            "datasets": [
                {
                    "path": "s0",
                    "coordinateTransformations": [
                        {
                            "type": "scale",
                            "scale": [
                                {"z": 0.02, "y": 0.0023, "x": 0.0023}.get(a, 1.0) for a in axes
                            ],
                        },
                        {
                            "type": "translation",
                            "translation": [
                                {"z": 1.5, "y": 0.0, "x": 0.01}.get(a, 0.0) for a in axes
                            ],
                        },
                    ],
                }
            ],
            "coordinateTransformations": [
                {"type": "scale", "scale": [2.0 if a in "zyx" else 1.0 for a in axes]}
            ],
        }
    ]
    volume = open_volume(str(tmp_path / "v"))
    assert volume.spec.spacing == Spacing.parse("40,4.6,4.6")
    assert volume.spec.corner_nm == (2980, Fraction("-2.3"), Fraction("17.7"))
    np.testing.assert_array_equal(volume.read(volume.spec.box), data)


def test_floats_are_refused(tmp_path):
    zarr.create_array(tmp_path / "float", shape=(4, 5, 6), dtype="float32")
    volume = open_volume(str(tmp_path / "float"), Access(spacing=SPACING))
    assert volume.read(volume.spec.box).dtype == np.float32
    with pytest.raises(UsageError, match=r"holds float32; uint8 and uint16 .* --window auto"):
        check_supported(volume.spec)


@pytest.mark.parametrize("version", [2, 3])
def test_plain_zarr_needs_a_spacing(tmp_path, version):
    array = zarr.create_array(tmp_path / "a", shape=(4, 5, 6), dtype="uint8", zarr_format=version)
    array[:] = np.arange(120).reshape(4, 5, 6)
    with pytest.raises(UsageError, match=r"voxel size of .* is not known; give"):
        open_volume(str(tmp_path / "a"))
    volume = open_volume(f"zarr{version}://{tmp_path}/a", Access(spacing=SPACING))
    assert volume.spec.spacing == SPACING
    np.testing.assert_array_equal(volume.read(volume.spec.box), array[:])


def n5_array(folder: Path, data, attributes):
    array = ts.open(
        {
            "driver": "n5",
            "kvstore": f"file://{folder}",
            "metadata": {
                "dimensions": data.shape[::-1],
                "blockSize": [4, 4, 4],
                "dataType": str(data.dtype),
                "compression": {"type": "gzip"},
                **attributes,
            },
        },
        create=True,
    ).result()
    array[...].write(data.T).result()


@pytest.mark.parametrize(
    "attributes",
    [
        {"pixelResolution": {"dimensions": [0.0046, 0.0046, 0.046], "unit": "um"}},
        {"resolution": [4.6, 4.6, 46]},
    ],
)
def test_n5_arrays(tmp_path, attributes):
    data = np.arange(210, dtype=np.uint8).reshape(5, 6, 7)
    n5_array(tmp_path / "v.n5" / "s0", data, attributes)
    volume = open_volume(f"n5://{tmp_path}/v.n5/s0")
    assert volume.spec.spacing == SPACING
    np.testing.assert_array_equal(volume.read(volume.spec.box), data)
    assert set(object_keys(volume.spec, 0, volume.spec.box)) == {
        f"{x}/{y}/{z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)
    }


def test_n5_groups_of_cosem(tmp_path):
    data = np.arange(210, dtype=np.uint8).reshape(5, 6, 7)
    n5_array(tmp_path / "s0", data, {})
    transform = {
        "axes": ["z", "y", "x"],
        "units": ["nm", "nm", "nm"],
        "scale": [46, 4.6, 4.6],
        "translate": [0.0, 2.3, 0.0],
    }
    (tmp_path / "attributes.json").write_text(
        json.dumps({"multiscales": [{"datasets": [{"path": "s0", "transform": transform}]}]})
    )
    volume = open_volume(str(tmp_path))
    assert volume.spec.spacing == SPACING
    assert volume.spec.corner_nm == (-23, 0, Fraction("-2.3"))
    np.testing.assert_array_equal(volume.read(volume.spec.box), data)
