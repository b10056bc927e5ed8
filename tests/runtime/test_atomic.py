from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlkd_runtime import atomic
from vlkd_runtime.errors import DataError


def test_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "first\r\n")
    atomic.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space"):
        atomic.write_bytes(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"old"


def test_one_at_a_time_is_in_a_body_and_an_error_lets_the_next_one_in(tmp_path: Path) -> None:
    inside: list[int] = []

    def enter(number: int) -> int:
        with atomic.exclusive(tmp_path / "lock"):
            inside.append(number)
            most = len(inside)
            time.sleep(0.01)
            inside.remove(number)
            return most

    with pytest.raises(ZeroDivisionError), atomic.exclusive(tmp_path / "lock"):
        1 / 0  # noqa: B018
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(enter, range(12))) == {1}


@pytest.mark.parametrize("before", ["nothing", "empty", "replaced"])
def test_folder_appears_whole(tmp_path: Path, before: str) -> None:
    final = tmp_path / "deep" / "out"
    if before != "nothing":
        final.mkdir(parents=True)
    if before == "replaced":
        (final / "old").write_text("old")
    with atomic.atomic_folder(final, replace=before == "replaced") as folder:
        assert folder.parent == final.parent
        (folder / "a").write_text("a")
        assert not (final / "a").exists()
    assert [p.name for p in final.iterdir()] == ["a"]
    assert [p.name for p in final.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_taken_places_are_refused_before_any_work(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "out"
    if kind == "full":
        final.mkdir()
        (final / "precious").write_text("x")
    elif kind == "file":
        final.write_text("x")
    else:
        final.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="choose another place"), atomic.atomic_folder(final):
        pytest.fail("the body must not run")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failing_body_leaves_what_was_there(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.atomic_folder(final, replace=True) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in final.iterdir()] == ["old"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="Input/output"), atomic.atomic_folder(final, replace=True) as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (final / "old").read_text() == "old"
