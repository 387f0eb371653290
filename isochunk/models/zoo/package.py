"""A package of bioimage.io, read where it lies: nothing is unpacked, and nothing is fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from isochunk.errors import ModelError

if TYPE_CHECKING:
    from bioimageio.spec.common import FileDescr
    from bioimageio.spec.model.v0_5 import ModelDescr

NAMES = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
"""What a description may be called; also behind a dot, as ``anything.rdf.yaml``."""

QUOTED = 400
"""Letters of what the library says that are shown."""


def is_package(name: str) -> bool:
    """Tell whether a model is a package: a ``.zip``, or a folder that holds a description."""
    if name.endswith(".zip"):
        return True
    return any(path.name.endswith(NAMES) for path in Path(name).glob("*.yaml"))


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package; its files are read while it is open."""

    name: str
    """What the user called it."""
    root: Path | ZipFile
    """Folder or archive of its files."""
    text: str
    """The description as it is stored."""
    description: ModelDescr
    """The description, in the newest form."""

    def read(self, file: FileDescr) -> bytes:
        """Return a file of the package.

        Raises:
            ModelError: it lies elsewhere, is missing, or is not the file that was described.
        """
        path = PurePosixPath(str(file.source))
        if not _inside(path):
            raise ModelError(
                f"package {self.name!r} points to {file.source}, outside itself; put that file "
                "into the package, since nothing is fetched"
            )
        try:
            if isinstance(self.root, ZipFile):
                found = self.root.read(str(path))
            else:
                whole = (self.root / path).resolve()
                if not whole.is_relative_to(self.root.resolve()):
                    raise ModelError(
                        f"package {self.name!r} has a link that leads outside itself, {path}; put "
                        "the file itself there"
                    )
                found = whole.read_bytes()
        except (KeyError, OSError, BadZipFile) as error:
            raise ModelError(
                f"package {self.name!r} lacks {path}, or it cannot be read ({error}); fetch the "
                "package again"
            ) from error
        got = hashlib.sha256(found).hexdigest()
        if file.sha256 is not None and got != str(file.sha256):
            raise ModelError(
                f"{path} of package {self.name!r} has sha256 {got} but its description records "
                f"{file.sha256}; the file was damaged or changed; fetch the package again"
            )
        return found


@contextmanager
def opened(name: str) -> Iterator[Package]:
    """Open a package, and close it when the block ends.

    Args:
        name: a folder with ``rdf.yaml`` or ``bioimageio.yaml``, or a ``.zip`` of one.

    Raises:
        ModelError: the extra is not installed; it is missing or no package, or not one of a model
            with one input and one output; or its description is invalid.
    """
    try:
        import bioimageio.spec  # noqa: F401 - whether it is there
    except ImportError:
        raise ModelError(
            f"model {name!r} is a package of bioimage.io, and what reads these is not installed; "
            "pip install 'isochunk[zoo]', on workers too"
        ) from None
    path = Path(name)
    if path.is_dir():
        yield _described(name, path.resolve())
        return
    try:
        archive = ZipFile(path)
    except FileNotFoundError:
        raise ModelError(f"no package {name!r}; give a folder or a .zip of bioimage.io") from None
    except (OSError, BadZipFile) as error:
        raise ModelError(f"{name} is no zip file ({error}); fetch the package again") from error
    with archive:
        if strange := [n for n in archive.namelist() if not _inside(PurePosixPath(n))]:
            raise ModelError(
                f"package {name!r} holds {strange[0]!r}, which leads outside of it; do not use it, "
                "or ask its author"
            )
        yield _described(name, archive)


def _described(name: str, root: Path | ZipFile) -> Package:
    """Parse a description without a look at files or the network."""
    from bioimageio.spec import InvalidDescr, ValidationContext, build_description
    from bioimageio.spec.model.v0_5 import ModelDescr
    from bioimageio.spec.utils import open_bioimageio_yaml

    try:
        found = open_bioimageio_yaml(root)
    except Exception as error:  # parsers of YAML have errors of their own
        raise ModelError(
            f"{name} is no package of bioimage.io: it holds no {' or '.join(NAMES[:2])} that can "
            f"be read ({_brief(error)}); give the package as it was published"
        ) from error
    _require_one_to_one(name, found.content)
    context = ValidationContext(
        root=root, file_name=found.original_file_name, perform_io_checks=False, log_warnings=False
    )
    described = build_description(found.content, context=context, format_version="latest")
    if isinstance(described, InvalidDescr):
        raise ModelError(
            f"the description of package {name!r} is invalid: {_brief(described.get_reason())}; "
            "`bioimageio validate-format` says all that is wrong"
        )
    assert isinstance(described, ModelDescr)
    return Package(name, root, found.unparsed_content, described)


def _require_one_to_one(name: str, content: Mapping[str, Any]) -> None:
    """Refuse what is not from one volume to one; before parsing, which may ask for other models."""
    kind = content.get("type")
    if kind != "model":
        raise ModelError(f"package {name!r} describes a {kind}; give the package of a model")
    for part in ("inputs", "outputs"):
        tensors = content.get(part)
        tensors = tensors if isinstance(tensors, list) else []
        count = len(tensors)
        if count != 1:
            raise ModelError(
                f"package {name!r} has {count} {part}; isochunk gives a network one volume and "
                "takes one; use a package with one input and one output"
            )
        if isinstance(tensors[0], dict) and tensors[0].get("output_of"):
            raise ModelError(
                f"package {name!r} continues another model, {tensors[0]['output_of']}; use a "
                "package that stands alone"
            )


def _inside(path: PurePosixPath) -> bool:
    """Tell whether a path stays below where it begins."""
    text = str(path)
    strange = ".." in path.parts or "\\" in text or ":" in text
    return not strange and not path.is_absolute()


def _brief(said: object) -> str:
    """Return what a library said, on one line that is not too long."""
    text = " ".join(str(said).split())
    return text if len(text) < QUOTED else f"{text[:QUOTED]}..."
