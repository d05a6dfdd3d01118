"""Builds the appliance.

What takes milliseconds is built here at once; `loading` builds models, index and workers on the
services' start-up thread, and is imported only there because torch takes seconds to import.
"""

import logging
import os
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from app.config import Settings
from app.db.chats import ChatRepository
from app.db.chunks import ChunkRepository
from app.db.collections import CollectionRepository
from app.db.documents import DocumentRepository
from app.db.evaluations import EvaluationRepository
from app.db.indexes import IndexRepository
from app.db.installation import join, own_folder
from app.db.jobs import JobRepository
from app.db.session import Database
from app.db.stored_files import StoredFileRepository
from app.errors import FolioError
from app.manual import sample_questions
from app.rag.parsers import SUPPORTED_SUFFIXES
from app.services import Limits, Records, Services
from app.wiring.accounts import database_url, make_accounts

logger = logging.getLogger(__name__)
BYTES_PER_MB = 1_000_000


def build_services(settings: Settings) -> Services:
    """Open the records now; `Services.start` loads the rest.

    Raises Conflict where another process works on the data folder, before anything is touched.
    """
    with ExitStack() as closing:
        closing.callback(os.close, own_folder(settings.data_dir.absolute()))
        records = open_records(settings)
        closing.callback(records.database.close)
        services = make_services(settings, records)
        services.closing = closing.pop_all()
    return services


def make_services(settings: Settings, records: Records) -> Services:
    """The services, with what an earlier process left undone put right."""
    num_interrupted = records.chats.fail_interrupted()
    if num_interrupted:
        logger.warning("answers interrupted by the last stop num_messages=%d", num_interrupted)
    records.evaluations.fail_interrupted()
    accounts = make_accounts(settings, records.database)
    has_accounts = settings.auth == "users"
    if not has_accounts and accounts.users.count():
        logger.warning("FOLIO_AUTH=off: whoever reaches Folio sees what its users have")
    return Services(
        accounts=accounts if has_accounts else None,
        setup_code=accounts.begin_setup() if has_accounts else None,
        records=records,
        limits=Limits(
            max_upload_bytes=settings.max_upload_mb * BYTES_PER_MB,
            upload_suffixes=tuple(sorted(SUPPORTED_SUFFIXES)),
            max_concurrent_answers=settings.max_concurrent_answers,
            max_queued_answers=settings.max_queued_answers,
            max_answer_tokens=settings.max_answer_tokens,
            temperature=settings.temperature,
        ),
        load=partial(_load, settings),
        sample_questions=partial(
            sample_questions, records.documents, records.collections, settings.manual_dir
        ),
        upload_dir=_empty_folder(settings.data_dir / "uploads"),
    )


def open_records(settings: Settings) -> Records:
    """The database, ours alone where it is a file, at the newest schema."""
    database = Database(database_url(settings))
    try:
        database.own()
        database.migrate()
        join(database, settings.data_dir.absolute())
    except FolioError:
        database.close()
        raise
    return Records(
        database=database,
        documents=DocumentRepository(database),
        chunks=ChunkRepository(database),
        chats=ChatRepository(database),
        collections=CollectionRepository(database),
        jobs=JobRepository(database),
        files=StoredFileRepository(database),
        indexes=IndexRepository(database),
        evaluations=EvaluationRepository(database),
    )


def _load(settings: Settings, services: Services) -> None:
    # torch takes seconds to import, and the server answers before
    from app.wiring.loading import load  # noqa: PLC0415

    load(settings, services)


def _empty_folder(folder: Path) -> Path:
    """The folder, without what a killed process left half uploaded."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
