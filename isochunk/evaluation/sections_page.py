"""One page that shows an inspection: profiles, the sections that differ, the table.

The words and the look are in ``sections_page.html.j2``; here is what it is given.
"""

from __future__ import annotations

from pathlib import Path

from isochunk import __version__
from isochunk.engine.inspection import Inspection
from isochunk.errors import UsageError
from isochunk.evaluation.page import PAGE, page_environment
from isochunk.evaluation.sections_pictures import draw_profiles, draw_worst
from isochunk.storage.volume import Volume

TEMPLATE = "sections_page.html.j2"


def write_sections_page(found: Inspection, volume: Volume, folder: str) -> None:
    """Write ``index.html`` into a folder, which is made where it is not there.

    Raises:
        UsageError: it cannot be written.
        StorageError: a section that is shown cannot be read again.
    """
    page = render_sections_page(found, volume)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {error.strerror}; choose another --report"
        ) from error


def render_sections_page(found: Inspection, volume: Volume) -> str:
    """Return the page as HTML with all images inside.

    Raises:
        StorageError: a section that is shown cannot be read again.
    """
    findings = found.findings
    shown = draw_worst(found, volume)
    return (
        page_environment()
        .get_template(TEMPLATE)
        .render(
            title=f"Sections of {found.url}",
            found=found,
            counts={
                "lost": len(findings.lost),
                "corrected": len(findings.corrected),
                "displaced": len(findings.shifts),
            },
            shown=shown,
            named=len(findings.lost) + len(findings.corrected) + len(findings.shifts),
            profiles=draw_profiles(found),
            table=found.table.text(len(found.profiles)),
            spacing=str(volume.spec.spacing),
            version=__version__,
        )
    )
