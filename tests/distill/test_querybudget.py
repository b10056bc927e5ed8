"""The query budget: nothing asked twice, nothing asked beyond it, nothing lost, and counted over several runs."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill import embeddings
from vlkd_distill.querybudget import BudgetedTeacher, QueryReport, report_without
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError


class Vendor:
    """Embeds by hashes; keeps everything it was asked; must never be asked for its size."""

    name = "vendor"
    logit_scale = 7.0

    def __init__(self, fingerprint: str = "v1") -> None:
        self.fingerprint = fingerprint
        self.images: list[bytes] = []
        self.texts: list[str] = []
        self.views = 0

    @property
    def dim(self) -> int:
        raise AssertionError("finding the size may cost a question")

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.images += [image.tobytes() for image in images]
        return self._rows([image.tobytes() for image in images])

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return self._rows([text.encode() for text in texts])

    def embed_views(self, views: torch.Tensor) -> torch.Tensor:
        self.views += len(views)
        return torch.ones(len(views), 4) / 2

    def _rows(self, contents: Sequence[bytes]) -> np.ndarray:
        rows = np.array([list(hashlib.sha256(content).digest()[:4]) for content in contents], np.float32) + 1
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (3, 2), (index, 2 * index, 5))


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    vendor = Vendor()
    teacher = BudgetedTeacher(vendor, 9, tmp_path)
    first = teacher.embed_images([picture(1), picture(2), picture(1)])
    again = teacher.embed_images([picture(2), picture(3), picture(1)])
    np.testing.assert_array_equal(first, Vendor().embed_images([picture(1), picture(2), picture(1)]))
    np.testing.assert_array_equal(again, Vendor().embed_images([picture(2), picture(3), picture(1)]))
    assert len(vendor.images) == 3
    texts = teacher.embed_texts(["a", "b", "a"])
    np.testing.assert_array_equal(teacher.embed_texts(["a", "b", "a"]), texts)
    assert vendor.texts == ["a", "b"] and teacher.dim == 4
    assert teacher.report() == QueryReport(asked=5, from_cache=7, images=3, texts=2, budget=9, left=4)


def test_the_next_run_goes_on_counting_and_knowing(tmp_path: Path) -> None:
    BudgetedTeacher(Vendor(), 5, tmp_path).embed_images([picture(1), picture(2)])
    vendor = Vendor()
    teacher = BudgetedTeacher(vendor, 5, tmp_path)
    teacher.embed_images([picture(2), picture(3)])
    assert len(vendor.images) == 1 and teacher.report().left == 2 and teacher.dim == 4
    other = BudgetedTeacher(Vendor("v2"), 5, tmp_path)
    assert other.report().left == 5  # another teacher has a bill of its own
    assert BudgetedTeacher(Vendor(), None, tmp_path).report() == QueryReport(0, 0, 3, 0, None, None)
    assert teacher.report() == QueryReport(asked=1, from_cache=1, images=3, texts=0, budget=5, left=2)
    # A run that needed nothing of it has not loaded it, and says the same of all runs.
    assert report_without("v1", 5, tmp_path) == QueryReport(0, 0, 3, 0, 5, 2)
    assert report_without("v3", 5, tmp_path).left == 5


@pytest.mark.parametrize(
    ("report", "text"),
    [
        pytest.param(
            QueryReport(34, 16, 80, 10, 100, 10),
            "34 asked in this run, 16 answered from the cache; 90 of a budget of 100 asked in all runs (80 images, 10 "
            "texts), 10 left",
            id="budget",
        ),
        pytest.param(
            QueryReport(0, 2, 1, 0, None, None),
            "0 asked in this run, 2 answered from the cache; 1 asked in all runs (1 images, 0 texts), no budget is set",
            id="no budget",
        ),
    ],
)
def test_the_report_in_words_and_as_json(report: QueryReport, text: str) -> None:
    plain = report.as_json()
    assert report.text == text == plain["text"] and json.loads(json.dumps(plain)) == plain
    assert (plain["asked"], plain["budget"], plain["left"]) == (report.asked, report.budget, report.left)


ASKING = """
import sys, time
from pathlib import Path
import numpy as np
from vlkd_distill import querybudget
from vlkd_runtime.errors import UnavailableError

def slowly(path, text, write=querybudget.write_text):
    time.sleep(0.05)  # between reading and writing, where another process would come in
    write(path, text)

class Vendor:
    name, fingerprint, logit_scale = "vendor", "v1", 1.0
    def embed_texts(self, texts):
        return np.ones((len(texts), 4), np.float32)

querybudget.write_text = slowly
folder, own = Path(sys.argv[1]), sys.argv[2]
teacher = querybudget.BudgetedTeacher(Vendor(), 12, folder)
print("ready", flush=True)
sys.stdin.readline()
asked = 0
try:
    while asked < 12:
        teacher.embed_texts([f"{own} {asked}"])
        asked += 1
except UnavailableError as error:
    assert "12 of the 12 questions" in str(error), error
print(asked)
"""


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    words = [[sys.executable, "-c", ASKING, str(tmp_path), own] for own in ("a", "b")]
    running = [
        subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for own in words
    ]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    asked = [int(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(asked) == 12
    assert BudgetedTeacher(Vendor(), 12, tmp_path).report().texts == 12


def test_two_teachers_on_one_folder_know_each_others_questions_and_answers(tmp_path: Path) -> None:
    vendors = Vendor(), Vendor()
    one, other = (BudgetedTeacher(vendor, 4, tmp_path) for vendor in vendors)
    one.embed_texts(["a", "b", "c"])
    np.testing.assert_array_equal(other.embed_texts(["c", "d", "a"]), Vendor().embed_texts(["c", "d", "a"]))
    assert vendors[1].texts == ["d"]
    for teacher in (one, other):
        with pytest.raises(UnavailableError, match="4 of the 4 questions"):
            teacher.embed_images([picture(1)])
        with pytest.raises(UnavailableError, match="4 of the 4 questions"):
            teacher.embed_views(torch.zeros(1, 3, 8, 8))
        assert teacher.report().left == 0
    assert BudgetedTeacher(Vendor(), 1, tmp_path).embed_texts(["d", "b"]).shape == (2, 4)


def test_what_two_want_to_know_at_the_same_moment_is_asked_once(tmp_path: Path) -> None:
    class Slow(Vendor):
        def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
            asking.set()
            time.sleep(0.2)
            return super().embed_texts(texts)

    asking, vendors = threading.Event(), (Slow(), Slow())
    teachers = [BudgetedTeacher(vendor, 4, tmp_path) for vendor in vendors]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(teachers[0].embed_texts, ["a", "b", "c"])
        assert asking.wait(10)  # and while it is being answered:
        second = pool.submit(teachers[1].embed_texts, ["c", "d", "a"])
        np.testing.assert_array_equal(second.result(), Vendor().embed_texts(["c", "d", "a"]))
        assert first.result().shape == (3, 4)
    assert [vendor.texts for vendor in vendors] == [["a", "b", "c"], ["d"]]
    assert teachers[1].report() == QueryReport(1, 2, 0, 4, 4, 0)


def test_beyond_the_budget_nothing_is_asked_and_nothing_lost(tmp_path: Path) -> None:
    vendor = Vendor()
    teacher = BudgetedTeacher(vendor, 4, tmp_path)
    teacher.embed_images([picture(1), picture(2)])
    teacher.embed_texts(["a"])
    message = (
        r"about 2 more images, but 3 of the 4 questions .* \(2 images, 1 texts\) and 1 are left. Nothing was"
    )
    with pytest.raises(UnavailableError, match=message):
        teacher.embed_images([picture(1), picture(3), picture(4)])
    with pytest.raises(UnavailableError, match=r"Raise teacher\.query_budget"):
        teacher.embed_views(torch.zeros(2, 3, 8, 8))
    assert (len(vendor.images), vendor.views) == (2, 0)
    assert teacher.embed_images([picture(2)]).shape == (1, 4)  # what is known costs nothing
    assert teacher.embed_images([picture(3)]).shape == (1, 4)  # and the last one is still there
    with pytest.raises(UnavailableError):
        teacher.embed_texts(["b"])
    assert BudgetedTeacher(vendor, 5, tmp_path).embed_texts(["b"]).shape == (1, 4)


def test_views_count_and_are_not_kept(tmp_path: Path) -> None:
    vendor = Vendor()
    teacher = BudgetedTeacher(vendor, None, tmp_path)
    for _ in range(2):
        assert teacher.embed_views(torch.zeros(3, 3, 8, 8)).shape == (3, 4)
    assert vendor.views == 6 and teacher.report().images == 6


def test_a_question_that_failed_counts(tmp_path: Path) -> None:
    class Broken(Vendor):
        def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
            raise UnavailableError("down")

    with pytest.raises(UnavailableError, match="down"):
        BudgetedTeacher(Broken(), 5, tmp_path).embed_texts(["a", "b"])
    assert BudgetedTeacher(Vendor(), 5, tmp_path).report().texts == 2


def test_an_answer_that_is_not_finite_is_given_but_not_kept(tmp_path: Path) -> None:
    class Odd(Vendor):
        def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
            rows = super().embed_images(images)
            rows[0] = np.nan
            return rows

    teacher = BudgetedTeacher(Odd(), None, tmp_path)
    assert np.isnan(teacher.embed_images([picture(1), picture(2)])).any(axis=1).tolist() == [True, False]
    vendor = Vendor()
    assert np.isfinite(BudgetedTeacher(vendor, None, tmp_path).embed_images([picture(1), picture(2)])).all()
    assert len(vendor.images) == 1


def test_the_size_costs_one_text_where_nothing_is_known(tmp_path: Path) -> None:
    vendor = Vendor()
    assert BudgetedTeacher(vendor, 1, tmp_path).dim == 4
    assert BudgetedTeacher(vendor, 1, tmp_path).dim == 4
    assert vendor.texts == ["a photo"]


def test_answers_are_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    class Wide(Vendor):
        def _rows(self, contents: Sequence[bytes]) -> np.ndarray:
            return np.tile(super()._rows(contents), 512)

    texts = [str(number) for number in range(2000)]
    batches = [texts[start : start + 50] for start in range(0, len(texts), 50)]
    tracemalloc.start()
    try:
        asking = BudgetedTeacher(Wide(), None, tmp_path)
        for batch in batches:
            asking.embed_texts(batch)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        knowing = BudgetedTeacher(Wide(), 0, tmp_path)
        gc.collect()
        known = tracemalloc.get_traced_memory()[0] - kept
    finally:
        tracemalloc.stop()
    answers_bytes = 2000 * 4 * 512 * 4
    assert max(kept, known) < answers_bytes / 8, (kept, known)
    shuffled = [*texts[::-7], *texts[:3]]
    for teacher in (asking, knowing):
        np.testing.assert_array_equal(teacher.embed_texts(shuffled), Wide().embed_texts(shuffled))


def test_an_answer_that_is_gone_is_named(tmp_path: Path) -> None:
    teacher = BudgetedTeacher(Vendor(), 5, tmp_path)
    teacher.embed_texts(["a"])
    (path,) = teacher.folder.glob("*.safetensors")
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: expected answers of a teacher, found: No such file"):
        teacher.embed_texts(["a"])


def test_an_embedding_run_that_hits_the_budget_goes_on_where_it_stopped(tmp_path: Path) -> None:
    samples = []
    for index in range(80):
        path = tmp_path / f"{index}.png"
        picture(index).save(path)
        samples.append(Sample(path, f"d/c/{index}.png", "d", 0))
    vendor = Vendor()
    with pytest.raises(UnavailableError, match="16 more images, but 65 of the 70"):
        embeddings.embed(BudgetedTeacher(vendor, 70, tmp_path / "q"), samples, tmp_path / "shards")
    rows = embeddings.embed(BudgetedTeacher(vendor, 90, tmp_path / "q"), samples, tmp_path / "shards")
    assert len(vendor.images) == len(set(vendor.images)) == 80 and vendor.texts == ["a photo"]
    np.testing.assert_array_equal(rows, Vendor().embed_images([picture(index) for index in range(80)]))


def cut_answers(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def spoil_ledger(folder: Path) -> None:
    (folder / "queries.json").write_text(json.dumps({"images": -1, "texts": 0}))


def empty_ledger(folder: Path) -> None:
    (folder / "queries.json").write_text("")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(cut_answers, "not a whole safetensors file", id="answers"),
        pytest.param(spoil_ledger, "the numbers of your bill", id="count"),
        pytest.param(empty_ledger, "the budget cannot be kept", id="no JSON"),
    ],
)
def test_a_damaged_record_is_refused_and_not_started_anew(tmp_path: Path, damage: Any, message: str) -> None:
    teacher = BudgetedTeacher(Vendor(), 5, tmp_path)
    teacher.embed_texts(["a"])
    damage(teacher.folder)
    with pytest.raises(DataError, match=message):
        BudgetedTeacher(Vendor(), 5, tmp_path)


@pytest.mark.parametrize("budget", [-1, 2.5, True], ids=["below 0", "fraction", "truth"])
def test_an_impossible_budget(tmp_path: Path, budget: Any) -> None:
    with pytest.raises(ConfigError, match="expected 0 or more questions"):
        BudgetedTeacher(Vendor(), budget, tmp_path)


def test_a_wrong_number_of_answers_is_refused(tmp_path: Path) -> None:
    class Short(Vendor):
        def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
            return super().embed_texts(texts)[:1]

    with pytest.raises(DataError, match=r"about 2 texts: expected rows \(2, D\), found \(1, 4\)"):
        BudgetedTeacher(Short(), None, tmp_path).embed_texts(["a", "b"])
