"""Stages: done once, redone when an input changes, and never half done."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_edge.stages import Workspace, locked
from vlkd_runtime.errors import UsageError


def test_done_once_and_again_when_an_input_changes(tmp_path: Path) -> None:
    ran: list[int] = []

    def run(value: int) -> bool:
        space = Workspace(tmp_path, tmp_path / "cache")
        result = space.stage(
            "work",
            {"value": value},
            lambda folder: (folder / "out").write_text(str(value)) and ran.append(value),
        )
        assert (result.folder / "out").read_text() == str(value)
        return result.cached

    assert [run(1), run(1), run(2), run(1)] == [False, True, False, True]
    assert ran == [1, 2]


def kill(space: Workspace, name: str, inputs: dict[str, int], words: str) -> None:
    """Interrupt a stage that has written something."""

    def dies(folder: Path) -> None:
        (folder / "half").write_text(words)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        space.stage(name, inputs, dies)


def test_a_killed_stage_goes_on_from_what_it_left(tmp_path: Path) -> None:
    space = Workspace(tmp_path, tmp_path / "cache")
    kill(space, "work", {}, "kept")
    assert not space.place("work", {})[1].exists()

    def goes_on(folder: Path) -> None:
        assert (folder / "half").read_text() == "kept"

    assert space.stage("work", {}, goes_on).folder == space.place("work", {})[1]


def test_stages_with_a_point_in_their_name_do_not_go_on_from_each_other(tmp_path: Path) -> None:
    space = Workspace(tmp_path, tmp_path / "cache")
    kill(space, "macs88.8", {"seed": 0}, "of another seed")
    found = space.stage("macs88.8", {"seed": 1}, lambda folder: None)
    assert not (found.folder / "half").exists()


def test_two_builds_in_one_folder_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="Another build is running"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Expected a folder that can be written"), locked(tmp_path / "file"):
        pass
