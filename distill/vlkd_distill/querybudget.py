"""Counts what a teacher is asked, keeps every answer, and stops before more is asked than is paid for.

Letters used in shapes: N images or texts, D embedding size, H and W pixels.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from vlkd_runtime.atomic import exclusive, write_bytes, write_text
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.strictjson import Fields, JsonProblems, parse
from vlkd_runtime.tensorfile import read_tensors, write_tensors

from .mapped import map_file
from .teachers import Teacher

FloatArray = npt.NDArray[np.float32]
Item = TypeVar("Item")

FOLDER = "queries"
"""Where in a cache ledgers and answers lie."""

_FORMAT = "vlkd-queries/1"
_LEDGER = "queries.json"
_PROBE = "a photo"
_MOST = 10**15
_KEY = 32


@dataclass(frozen=True, slots=True)
class QueryReport:
    """What a teacher was asked, for the record.

    Attributes:
        asked: questions of this run: images, views and texts.
        from_cache: questions that this run answered from what was kept.
        images: images and views asked about, in all runs that share the ledger.
        texts: texts asked about, likewise.
        budget: how many questions may be asked in all; None for any number.
        left: how many still may; None for any number.
    """

    asked: int
    from_cache: int
    images: int
    texts: int
    budget: int | None
    left: int | None

    @property
    def text(self) -> str:
        """The same for people."""
        spent = self.images + self.texts
        of = f" of a budget of {self.budget}" if self.budget is not None else ""
        left = f"{self.left} left" if self.budget is not None else "no budget is set"
        return (
            f"{self.asked} asked in this run, {self.from_cache} answered from the cache; {spent}{of} asked in all runs "
            f"({self.images} images, {self.texts} texts), {left}"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the words for people."""
        return {"text": self.text} | dataclasses.asdict(self)


class BudgetedTeacher:
    """Any teacher, asked for nothing twice and for no more than the budget.

    Answers are kept one by one, images by their pixels and texts by their letters, as soon as they come;
    views differ every time and are only counted. A question counts before it is asked: one that fails may
    have been billed all the same. The ledger and the answers belong to the teacher's fingerprint. Several
    processes may use them at once: they share the budget, and one at a time asks about images or texts, after it has
    looked for what others have kept.
    """

    def __init__(self, teacher: Teacher, budget: int | None, folder: Path) -> None:
        """Wrap a teacher.

        Args:
            teacher: who is asked; its ``dim`` is not looked at, as finding it may cost a question.
            budget: how many images and texts may be asked in all runs together; None only counts.
            folder: where ledger and answers lie.

        Raises:
            ConfigError: the budget is below 0.
            DataError: the ledger or an answer is damaged.
        """
        if budget is not None and (type(budget) is not int or budget < 0):
            msg = (
                f"teacher.query_budget: expected 0 or more questions, or none for no limit, found {budget!r}."
            )
            raise ConfigError(msg)
        self.name, self.fingerprint = teacher.name, teacher.fingerprint
        self.logit_scale = teacher.logit_scale
        self._teacher, self._budget = teacher, budget
        self.folder = _folder_of(teacher.fingerprint, folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ledger, self._lock = self.folder / _LEDGER, self.folder / "lock"
        self._asking = self.folder / "asking"
        _read_ledger(self._ledger)  # a damaged one is to be known before any work
        self._answers = _Answers(self.folder)
        self._asked = self._from_cache = 0

    @functools.cached_property
    def dim(self) -> int:
        """Embedding size D, from any answer kept; without one it costs a text."""
        return self._answers.size or int(self.embed_texts([_PROBE]).shape[1])

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Embed RGB images, asking only about those never asked about: unit rows ``(N, D)``.

        Raises:
            UnavailableError: the budget does not cover the new ones; none of them was asked about.
        """
        return self._embed("images", images, _image_key, self._teacher.embed_images)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Embed texts, asking only about those never asked about: unit rows ``(N, D)``.

        Raises:
            UnavailableError: as `embed_images`.
        """
        return self._embed("texts", texts, _text_key, self._teacher.embed_texts)

    def embed_views(self, views: Tensor) -> Tensor:
        """Embed augmented views ``(N, 3, H, W)``, each counted as an image: unit rows ``(N, D)``.

        Raises:
            UnavailableError: as `embed_images`.
        """
        with exclusive(self._lock):
            self._charge("images", len(views))
        rows = self._teacher.embed_views(views)
        self._check_size(rows.shape[1])
        return rows

    def report(self) -> QueryReport:
        """What was asked so far.

        Raises:
            DataError: the ledger is damaged.
        """
        return _report(self._ledger, self._budget, self._asked, self._from_cache)

    def count_kept(self, count: int) -> None:
        """Count answers that were kept elsewhere and taken from there, so that nobody came here for them."""
        self._from_cache += count

    def _embed(
        self,
        kind: str,
        items: Sequence[Item],
        key_of: Callable[[Item], bytes],
        ask: Callable[[Sequence[Item]], FloatArray],
    ) -> FloatArray:
        keys = [key_of(item) for item in items]
        wanted = dict(zip(keys, items, strict=True))
        known = all(key in self._answers for key in wanted)
        with contextlib.nullcontext() if known else exclusive(self._asking):
            fresh, asked = ({}, 0) if known else self._ask(kind, wanted, ask)
        self._from_cache += len(items) - asked
        answers = fresh | self._answers.rows(dict.fromkeys(key for key in keys if key not in fresh))
        return np.stack([answers[key] for key in keys]) if keys else np.zeros((0, self.dim), np.float32)

    def _ask(
        self, kind: str, items: Mapping[bytes, Item], ask: Callable[[Sequence[Item]], FloatArray]
    ) -> tuple[dict[bytes, FloatArray], int]:
        """Answers to those of the items that nobody was asked about, and how many these were; the caller asks alone."""
        new = self._claim(kind, items)
        fresh: dict[bytes, FloatArray] = {}
        if new:
            rows = np.asarray(ask(list(new.values())), np.float32)
            if rows.ndim != 2 or len(rows) != len(new):
                msg = (
                    f"The teacher '{self.name}' was asked about {len(new)} {kind}: expected rows ({len(new)}, D), "
                    f"found {rows.shape}; correct its interface."
                )
                raise DataError(msg)
            self._check_size(rows.shape[1])
            fresh = dict(zip(new, rows, strict=True))
            self._answers.keep({key: row for key, row in fresh.items() if np.isfinite(row).all()})
        return fresh, len(new)

    def _claim(self, kind: str, items: Mapping[bytes, Item]) -> dict[bytes, Item]:
        """Those of the items that nobody was asked about; they count as asked from now on."""
        with exclusive(self._lock):
            self._answers.look()  # another process may have asked about them
            new = {key: item for key, item in items.items() if key not in self._answers}
            if new:
                self._charge(kind, len(new))
        return new

    def _check_size(self, size: int) -> None:
        known = self._answers.size or size
        if size != known:
            msg = (
                f"The teacher '{self.name}' gave embeddings of size {size}, expected {known} as in its answers kept in "
                f"{self.folder}: another model answers now under the same fingerprint. Change the fingerprint, or put "
                "the old model back; the old answers stay where they are."
            )
            raise DataError(msg)

    def _charge(self, kind: str, count: int) -> None:
        """Count questions in the ledger, which the caller has locked."""
        ledger = _read_ledger(self._ledger)
        asked = ledger["images"] + ledger["texts"]
        if self._budget is not None and asked + count > self._budget:
            msg = (
                f"The teacher '{self.name}' would be asked about {count} more {kind}, but {asked} of the "
                f"{self._budget} questions of its budget are spent ({ledger['images']} images, "
                f"{ledger['texts']} texts) and {max(0, self._budget - asked)} are left. Nothing was asked; all "
                f"answers so far are kept in {self.folder}. Raise teacher.query_budget and run again, use fewer "
                'images, or set distill.teacher_view = "clean_cached", which asks once about each image.'
            )
            raise UnavailableError(msg)
        ledger[kind] += count
        write_text(self._ledger, json.dumps({"format": _FORMAT, "teacher": self.name} | ledger))
        self._asked += count


class _Answers:
    """What was answered, in files of one batch of questions each; memory holds the keys and where each answer lies.

    Attributes:
        size: D of every answer; 0 while there is none.
    """

    def __init__(self, folder: Path) -> None:
        """Look through a folder.

        Raises:
            DataError: a file is damaged, or holds embeddings of another size than those before it.
        """
        self._folder = folder
        self._files: list[Path] = []
        self._starts: list[int] = []
        self._places: dict[bytes, int] = {}
        self._end = self.size = 0
        self.look()

    def look(self) -> None:
        """Take in the files that came since the last time.

        Raises:
            DataError: as for the class.
        """
        for path in sorted(set(self._folder.glob("*.safetensors")).difference(self._files)):
            self._add(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def rows(self, keys: Iterable[bytes]) -> dict[bytes, FloatArray]:
        """The answers to some keys, read from their files.

        Raises:
            DataError: a file is gone, or damaged since.
        """
        wanted: dict[int, list[bytes]] = {}
        for key in keys:
            wanted.setdefault(bisect.bisect_right(self._starts, self._places[key]) - 1, []).append(key)
        found: dict[bytes, FloatArray] = {}
        for file, own in wanted.items():
            _, rows = _open_answers(self._files[file])
            # Copies, so that the file is let go of.
            found |= {key: np.array(rows[self._places[key] - self._starts[file]]) for key in own}
        return found

    def keep(self, rows: Mapping[bytes, FloatArray]) -> None:
        """Write answers down, and know them from now on."""
        if not rows:
            return
        keys = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), _KEY)
        data = write_tensors({"key": keys, "embedding": np.stack(list(rows.values()))}, {})
        path = self._folder / f"{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
        write_bytes(path, data)
        self._add(path)

    def _add(self, path: Path) -> None:
        keys, rows = _open_answers(path)
        if self.size not in (0, rows.shape[1]):
            msg = f"{path}: expected embeddings of size {self.size} as in the files beside it, found {rows.shape[1]}."
            raise DataError(msg)
        self.size = int(rows.shape[1])
        self._files.append(path)
        self._starts.append(self._end)
        self._places |= {key.tobytes(): self._end + row for row, key in enumerate(keys)}
        self._end += len(keys)


def counted(teacher: object) -> BudgetedTeacher | None:
    """A teacher as the one whose questions are counted; None if they are not."""
    return teacher if isinstance(teacher, BudgetedTeacher) else None


def report_without(fingerprint: str, budget: int | None, folder: Path) -> QueryReport:
    """What a teacher was asked before, for a run that needed nothing of it and has not loaded it.

    Args:
        fingerprint: the teacher's.
        budget: how many questions may be asked in all runs together; None for any number.
        folder: as for `BudgetedTeacher`.

    Raises:
        DataError: the ledger is damaged.
    """
    return _report(_folder_of(fingerprint, folder) / _LEDGER, budget, 0, 0)


def _report(path: Path, budget: int | None, asked: int, from_cache: int) -> QueryReport:
    ledger = _read_ledger(path)
    left = None if budget is None else max(0, budget - ledger["images"] - ledger["texts"])
    return QueryReport(asked, from_cache, ledger["images"], ledger["texts"], budget, left)


def _folder_of(fingerprint: str, folder: Path) -> Path:
    return folder / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]


def _image_key(image: Image.Image) -> bytes:
    pixels = image.convert("RGB")
    return hashlib.sha256(f"image {pixels.size} ".encode() + pixels.tobytes()).digest()


def _text_key(text: str) -> bytes:
    return hashlib.sha256(f"text {text}".encode()).digest()


def _read_ledger(path: Path) -> dict[str, int]:
    if not path.exists():
        return {"images": 0, "texts": 0}
    problems: list[str] = []
    try:
        fields = Fields(parse(path.read_bytes()), "", problems)
    except JsonProblems as error:
        problems.append(str(error))
        fields = Fields({}, "", [])
    counts = {kind: fields.integer(kind, 0, _MOST) for kind in ("images", "texts")}
    if problems:
        msg = (
            f"{path}: expected the count of questions asked, found {'; '.join(problems)}. Without it the budget "
            'cannot be kept: restore it, or write {"images": 0, "texts": 0} with the numbers of your bill.'
        )
        raise DataError(msg)
    return counts


def _open_answers(path: Path) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """Keys ``(N, 32)`` and answers ``(N, D)`` of a file, mapped."""
    try:
        tensors, _ = read_tensors(map_file(path), where=str(path))
    except OSError as error:
        msg = (
            f"{path}: expected answers of a teacher, found: {error.strerror}. Put the file back; without it, what it "
            "answers is asked (and paid) again by the next run."
        )
        raise DataError(msg) from error
    keys, rows = tensors.get("key"), tensors.get("embedding")
    whole = keys is not None and rows is not None and rows.dtype == np.float32 and rows.ndim == 2
    if not whole or keys is None or rows is None or keys.shape != (len(rows), _KEY):
        msg = f"{path}: expected answers of a teacher; remove the file, and they are asked (and paid) again."
        raise DataError(msg)
    return keys, rows
