"""Adds files, folders and web pages to the library: `python -m app.scripts.initialize_data PATH…`.

It works by itself on a data folder that no appliance uses; to one that runs it sends the files.
Either way a file is known by its absolute path and a page by its address, so another run adds
nothing twice. Exit codes: see `main`.
"""

import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from watchfiles import watch as watch_paths

from app import log
from app.config import Settings
from app.errors import FolioError, InvalidInput
from app.scripts.initialize_data.addresses import GuardedBackend, read_allowed
from app.scripts.initialize_data.dry_run import open_dry
from app.scripts.initialize_data.fetching import Fetcher
from app.scripts.initialize_data.files import changed_files, find_files, is_inside
from app.scripts.initialize_data.libraries import Library, open_library, open_with_ray
from app.scripts.initialize_data.report import Report, show, show_plan, write_json
from app.scripts.initialize_data.sync import Ingest, synchronise
from app.scripts.initialize_data.url_lists import read_lists
from app.scripts.initialize_data.web import PageSource, PageSync
from app.scripts.initialize_data.web_memory import WebMemory

DEFAULT_COLLECTION = "default"
SOME_FAILED, BAD_USAGE, UNREACHABLE, INTERRUPTED = 1, 2, 3, 130
WATCH_POLL_MS = 500
BYTES_PER_MB = 1_000_000
console = Console(soft_wrap=True, highlight=False)
Open = Callable[[Settings, str | None, str, Console], Library]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one run is to do."""

    roots: Sequence[Path]
    urls: Sequence[str]
    collection: str
    delete: bool
    is_dry: bool


class Engine(StrEnum):
    """Where documents are read: in this process, or on a Ray cluster."""

    PLAIN = "plain"
    RAY = "ray"


def main(  # noqa: PLR0913 (a command has as many arguments as it has options)
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders.", show_default=False)
    ] = None,
    urls: Annotated[
        list[str] | None,
        typer.Option(
            help="A page, a sitemap (.xml), or a text file with an address a line; may be given"
            " several times.",
            metavar="FILE|URL",
            show_default=False,
        ),
    ] = None,
    collection: Annotated[
        str, typer.Option(help="Knowledge base; made where there is none of this name.")
    ] = DEFAULT_COLLECTION,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder, where not that of the settings.")
    ] = None,
    delete: Annotated[
        bool,
        typer.Option("--delete", "--prune", help="Delete documents whose files or pages are gone."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; show what would be done.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and keep the library in step until Ctrl-C.")
    ] = False,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the summary to this file, too.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Address of a running appliance that gets the files sent."),
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(help="Where files are parsed and embedded: in this process, or by Ray."),
    ] = Engine.PLAIN,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A Ray cluster; without it Ray uses the cores of this machine."),
    ] = None,
) -> None:
    """Add files, folders and web pages to Folio's documents, and keep them in step with later runs.

    What has not changed is passed over; documents follow files that were moved or renamed.

    Exit codes: 0 all is searchable; 1 some files or pages failed; 2 wrong arguments, settings or
    lists; 3 nothing could be reached (the appliance, the index, or every page); 130 stopped.
    """
    with exit_codes(is_watching=watch):
        settings = read_settings(data_dir)
        roots = [existing(path) for path in paths or []]
        wanted = Wanted(roots, urls or [], collection, delete, dry_run)
        require_sense(wanted, is_watching=watch)
        open_it = opener(engine, ray_address, is_dry=dry_run)
        with closing(open_it(settings, url, collection, console)) as library:
            if watch:
                keep_in_step(library, roots, delete=delete)
                return
            report = run_once(library, wanted, settings)
        if json:
            write_json(report, json)
    if report.is_cut_off:
        raise typer.Exit(UNREACHABLE)
    if report.failed:
        raise typer.Exit(SOME_FAILED)


def opener(engine: Engine, ray_address: str | None, *, is_dry: bool) -> Open:
    """How the library is opened; raise InvalidInput for an address that nothing would use."""
    if ray_address and engine is not Engine.RAY:
        raise InvalidInput("--ray-address is for --engine ray")
    if is_dry:
        return open_dry
    return partial(open_with_ray, ray_address) if engine is Engine.RAY else open_library


@contextmanager
def exit_codes(*, is_watching: bool) -> Iterator[None]:
    """Say what went wrong, and end with the code for it."""
    try:
        yield
    except FolioError as error:
        console.print(f"init-data: {error}", style="red", markup=False)
        is_usage = isinstance(error, InvalidInput)
        raise typer.Exit(BAD_USAGE if is_usage else UNREACHABLE) from error
    except KeyboardInterrupt:
        console.print("Stopped. What is queued goes on at the next start, or run this again.")
        raise typer.Exit(0 if is_watching else INTERRUPTED) from None


def require_sense(wanted: Wanted, *, is_watching: bool) -> None:
    """Raise InvalidInput for arguments that do not go together."""
    if not wanted.roots and not wanted.urls:
        raise InvalidInput("name files or folders, or pages with --urls")
    if is_watching and (wanted.urls or wanted.is_dry):
        raise InvalidInput(
            "--watch follows files and folders alone: run --urls from time to time instead, and"
            " --dry-run by itself"
        )


def run_once(library: Library, wanted: Wanted, settings: Settings) -> Report:
    """One pass over all files and pages, with its summary."""
    started = time.monotonic()
    unread: list[str] = []
    files = list(find_files(wanted.roots, unread.append))
    report = synchronise(library, wanted.roots, files, console, delete=wanted.delete)
    report.warnings += unread
    if wanted.roots and not files:
        report.warnings.append("no files were found")
    if wanted.urls:
        synchronise_pages(library, wanted, settings, report)
    if wanted.is_dry:
        show_plan(report, console)
    show(report, console, time.monotonic() - started)
    return report


def synchronise_pages(library: Library, wanted: Wanted, settings: Settings, report: Report) -> None:
    """Fetch the listed pages and bring their documents in step."""
    allowed = read_allowed(settings.web_allow_private)
    memory = WebMemory(settings.data_dir, wanted.collection)
    memory.load()
    with (
        closing(Fetcher(GuardedBackend(allowed))) as fetcher,
        tempfile.TemporaryDirectory(prefix="folio-web-") as folder,
    ):
        source = PageSource(fetcher, Path(folder), settings.max_upload_mb * BYTES_PER_MB)
        pages = read_lists(wanted.urls, source.read)
        if not pages:
            report.warnings.append("no pages are listed")
        sync = PageSync(library, source, memory, report)
        Ingest(library, report, console).run(sync.changed_files(pages), len(pages))
        sync.delete_gone(pages, delete=wanted.delete)
    if not wanted.is_dry:
        memory.save()


def keep_in_step(library: Library, roots: Sequence[Path], *, delete: bool) -> None:
    """Follow the file system's changes until Ctrl-C or SIGTERM; files that fail are shown.

    The first pass comes once changes are noted already, so that none falls in between.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_first = True
    for changes in watch_paths(*roots, yield_on_timeout=True, rust_timeout=WATCH_POLL_MS):
        started = time.monotonic()
        changed = {Path(path) for _, path in changes}
        if is_first:
            files = list(find_files(roots))
        elif any(is_inside(path, root) for path in changed for root in roots):
            files = changed_files(roots, changed)
        else:
            continue
        show(
            synchronise(library, roots, files, console, delete=delete),
            console,
            time.monotonic() - started,
        )
        if is_first:
            console.print(f"Watching {', '.join(map(str, roots))}. Ctrl-C ends it.", markup=False)
            is_first = False


def existing(path: Path) -> Path:
    """The absolute path, links resolved; InvalidInput when there is nothing."""
    resolved = path.expanduser().resolve()
    if not resolved.exists():
        raise InvalidInput(f"there is no {path}")
    return resolved


def read_settings(data_dir: Path | None) -> Settings:
    """The settings of the appliance; InvalidInput names those that are wrong."""
    given: dict[str, Any] = {"data_dir": data_dir} if data_dir else {}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        problems = (f"FOLIO_{p['loc'][0]}".upper() + f": {p['msg']}" for p in error.errors())
        raise InvalidInput(f"wrong settings: {'; '.join(problems)}") from error
    log.configure("error", settings.log_format)
    return settings


if __name__ == "__main__":
    typer.run(main)
