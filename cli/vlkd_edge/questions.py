"""What a teacher whose questions are counted was asked: for the end of a run, and for its record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vlkd_distill import teacher_names
from vlkd_runtime.errors import DataError

from .learn import Learning, load_vectors
from .progress import Live

if TYPE_CHECKING:
    from vlkd_distill.querybudget import QueryReport
    from vlkd_distill.teachers import Teacher


def queries(learning: Learning) -> QueryReport | None:
    """What the teacher was asked so far; None where its questions are not counted, or it is not known yet.

    Raises:
        DataError: the ledger of questions is damaged.
    """
    asked = learning.config.teacher
    if not teacher_names.is_counted(asked.model, asked.query_budget):
        return None
    from vlkd_distill import querybudget

    loaded = querybudget.counted(learning.loaded_teacher)
    if loaded is not None:
        return loaded.report()
    known = next((stage for stage in learning.workspace.results if stage.name == "vectors"), None)
    if known is None:
        return None
    folder = learning.workspace.cache / querybudget.FOLDER
    return querybudget.report_without(load_vectors(known).teacher_fingerprint, asked.query_budget, folder)


def asked_of(teacher: Teacher) -> QueryReport | None:
    """What this teacher was asked; None where its questions are not counted.

    Raises:
        DataError: the ledger of questions is damaged.
    """
    from vlkd_distill import querybudget

    counted = querybudget.counted(teacher)
    return None if counted is None else counted.report()


def counting(learning: Learning) -> contextlib.AbstractContextManager[None]:
    """Say what the teacher was asked when the work ends, however it ends: it may all have been billed."""
    return telling(learning.live, lambda: queries(learning))


@contextlib.contextmanager
def telling(live: Live, find: Callable[[], QueryReport | None]) -> Iterator[None]:
    """The same for what is found otherwise."""
    try:
        yield
    finally:
        with contextlib.suppress(DataError):  # which has ended the work, too
            found = find()
            if found is not None:
                live.banner(f"Questions to the teacher: {found.text}.", ())
