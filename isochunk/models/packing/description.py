"""What a package says of a network, in the words of bioimage.io."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bioimageio.spec import InvalidDescr, load_description, save_bioimageio_package
from bioimageio.spec.common import FileDescr, Sha256
from bioimageio.spec.model import v0_5
from bioimageio.spec.utils import get_sha256, get_spdx_licenses

from isochunk.core.geometry import AXES
from isochunk.core.spec import Intensity, ModelSpec
from isochunk.errors import ModelError
from isochunk.models.packing.script import Script

WHITE = 255.0
"""Of uint8, which a package takes."""

TOLERANCE = 0.05
"""Grey levels by which another machine's arithmetic may differ."""

PAPERS = {
    "fsrcnn": ("Heinrich, Bogovic and Saalfeld 2017: 3D-FSRCNN", "10.48550/arXiv.1706.03142"),
    "srunet": ("Heinrich, Bogovic and Saalfeld 2017: 3D-SRU-Net", "10.48550/arXiv.1706.03142"),
    "a2i": ("Khateri et al. 2023: A2I-3DEM", "10.48550/arXiv.2309.10646"),
    "pssr-z": ("Khateri et al. 2023: PSSR along z", "10.48550/arXiv.2309.10646"),
    "swinir": ("Liang et al. 2021: SwinIR", "10.48550/arXiv.2108.10257"),
    "srmd": ("Zhang, Zuo and Zhang 2018: SRMD", "10.48550/arXiv.1712.06116"),
}
"""Paper of an architecture, and its DOI."""

_DOI = re.compile(r"doi:? (10\.\S+?)[,;.]?(?:\s|$)")


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a package, written before it is described."""

    weights: Path
    """TorchScript."""
    source: Path
    """Test input, ``.npy``."""
    answer: Path
    """Test output, ``.npy``."""
    card: Path
    """Documentation, ``.md``."""
    cover: Path
    """Picture, ``.png``."""


def describe(script: Script, intensity: Intensity, files: Files, torch: str) -> v0_5.ModelDescr:
    """Describe a network.

    Args:
        script: the network.
        intensity: what stored values mean to it, the same for every volume.
        files: that were written.
        torch: version of torch that wrote the weights.

    Raises:
        pydantic.ValidationError: what would be said is not valid.
    """
    spec = script.spec
    factor = script.factor[0]
    says: dict[str, Any] = {}
    if spec.licence in {entry["licenseId"] for entry in get_spdx_licenses()["licenses"]}:
        says["license"] = spec.licence
    return v0_5.ModelDescr(
        name=f"isochunk {_plain(spec.name)} x{factor}",
        description=(
            f"Makes sections of electron-microscopy volumes {factor} times thinner along z "
            f"({spec.arch}). Sections are "
            f"{'means over their thickness' if spec.phase == 'mean' else 'samples'}."
        ),
        authors=[v0_5.Author(name="isochunk authors")],
        cite=citations(spec),
        documentation=_file(files.card),
        covers=[_file(files.cover)],
        tags=["electron-microscopy", "super-resolution", "isotropic", "3d", "pytorch"],
        inputs=[_input(script, intensity, files)],
        outputs=[_output(script, intensity, files)],
        weights=v0_5.WeightsDescr(
            torchscript=v0_5.TorchscriptWeightsDescr(
                source=files.weights,
                sha256=_digest(files.weights),
                pytorch_version=v0_5.Version(torch.partition("+")[0]),
                comment=f"Traced at blocks of {script.block} source voxels (z, y, x).",
            )
        ),
        config=_config(spec),
        **says,
    )


def save(described: v0_5.ModelDescr, out: Path) -> tuple[str, ...]:
    """Write the package, and return what the zoo's validation remarks of it.

    Raises:
        ModelError: it does not pass.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    save_bioimageio_package(described, output_path=out)
    checked = load_description(out)
    summary = checked.validation_summary
    if isinstance(checked, InvalidDescr) or summary is None or summary.status == "failed":
        reason = checked.get_reason() if isinstance(checked, InvalidDescr) else "it failed"
        out.unlink()
        raise ModelError(f"the package would not be valid ({reason}); report that to isochunk")
    return tuple(
        f"{'.'.join(map(str, remark.loc))}: {remark.msg}"
        for detail in summary.details
        for remark in detail.warnings
    )


def citations(spec: ModelSpec) -> list[v0_5.CiteEntry]:
    """Return the paper of a network, and those that are named with its training data."""
    found = [PAPERS[spec.arch]] if spec.arch in PAPERS else []
    found += [(f"Trained on: {spec.trained_on}", doi) for doi in _DOI.findall(spec.trained_on)]
    return [v0_5.CiteEntry(text=text, doi=v0_5.Doi(doi)) for text, doi in found]


def _input(script: Script, intensity: Intensity, files: Files) -> v0_5.InputTensorDescr:
    scale = dict(zip(AXES, script.factor, strict=True))
    return v0_5.InputTensorDescr(
        id=v0_5.TensorId("sections"),
        description="sections as they are stored; thick along z",
        axes=[
            v0_5.BatchAxis(size=1),
            v0_5.ChannelAxis(channel_names=[v0_5.Identifier("em")]),
            *(
                v0_5.SpaceInputAxis(id=v0_5.AxisId(name), size=size, scale=float(scale[name]))
                for name, size in zip(AXES, script.block, strict=True)
            ),
        ],
        data=v0_5.IntervalOrRatioDataDescr(type="uint8"),
        test_tensor=_file(files.source),
        preprocessing=[
            v0_5.FixedZeroMeanUnitVarianceDescr(
                kwargs=v0_5.FixedZeroMeanUnitVarianceKwargs(
                    mean=intensity.offset, std=intensity.scale
                )
            ),
            v0_5.EnsureDtypeDescr(kwargs=v0_5.EnsureDtypeKwargs(dtype="float32")),
        ],
    )


def _output(script: Script, intensity: Intensity, files: Files) -> v0_5.OutputTensorDescr:
    rims = [h * f for h, f in zip(script.halo, script.factor, strict=True)]
    return v0_5.OutputTensorDescr(
        id=v0_5.TensorId("restored"),
        description="the same volume with sections as thin as voxels are wide",
        axes=[
            v0_5.BatchAxis(size=1),
            v0_5.ChannelAxis(channel_names=[v0_5.Identifier("em")]),
            *(_fine_axis(name, rim) for name, rim in zip(AXES, rims, strict=True)),
        ],
        data=v0_5.IntervalOrRatioDataDescr(type="float32", range=(0.0, WHITE)),
        test_tensor=_file(files.answer),
        postprocessing=[
            v0_5.ScaleLinearDescr(
                kwargs=v0_5.ScaleLinearKwargs(gain=intensity.scale, offset=intensity.offset)
            ),
            v0_5.ClipDescr(kwargs=v0_5.ClipKwargs(min=0.0, max=WHITE)),
        ],
    )


def _fine_axis(name: str, rim: int) -> v0_5.SpaceOutputAxis | v0_5.SpaceOutputAxisWithHalo:
    size = v0_5.SizeReference(tensor_id=v0_5.TensorId("sections"), axis_id=v0_5.AxisId(name))
    if rim:
        return v0_5.SpaceOutputAxisWithHalo(id=v0_5.AxisId(name), size=size, halo=rim)
    return v0_5.SpaceOutputAxis(id=v0_5.AxisId(name), size=size)


def _config(spec: ModelSpec) -> v0_5.Config:
    tolerance = v0_5.ReproducibilityTolerance(absolute_tolerance=TOLERANCE)
    config = v0_5.Config(
        bioimageio=v0_5.BioimageioConfig(
            reproducibility_tolerance=[tolerance],
            architecture_type=spec.arch,
            modality="electron microscopy",
            task="super-resolution along z",
            model_parameter_count=spec.parameters,
        ),
    )
    return config.model_copy(update={"isochunk": {"name": spec.name, "sha256": spec.sha256}})


def _file(path: Path) -> FileDescr:
    return FileDescr(source=path, sha256=_digest(path))


def _digest(path: Path) -> Sha256:
    return get_sha256(path)


def _plain(name: str) -> str:
    """Return a name in the letters that the zoo allows."""
    return re.sub(r"[^A-Za-z0-9_+-]+", "-", Path(name).name)
