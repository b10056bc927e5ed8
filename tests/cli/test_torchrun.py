"""torchrun starts the processes: the student is that of one process, and each ends when the first one does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_distill import processes
from vlkd_distill.data import NO_LABEL
from vlkd_distill.launched import Launch, launched
from vlkd_edge import configfile
from vlkd_edge.__main__ import main
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.tensorfile import read_tensors

SECOND_OF_TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# On a machine without a GPU, too: this is how it comes to start several by torchrun.
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


def launch(launcher: tuple[str, ...], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def weights(out: Path, method: str) -> Mapping[str, np.ndarray[Any, Any]]:
    (file,) = out.glob(f"stages/{method}-*/student.safetensors")
    return read_tensors(file.read_bytes(), where=method)[0]


def test_two_processes_of_torchrun_train_the_students_of_one(
    tmp_path: Path,
    edge: Callable[..., tuple[int, dict[str, Any]]],
    write_data: Callable[..., Path],
    tiny: tuple[str, ...],
    untrained_clip: Callable[[Path], str],
    labels_shown: set[int],
) -> None:
    data = write_data()
    words = ("bench", "dg", "--held-out", "sketch", "--methods", "promptkd,vlm-ood")
    prompts = ("prompts.lr=1.0", "prompts.shots=4", "prompts.tokens=2", "prompts.epochs=4")
    settings = (
        *(
            f"teacher.model={untrained_clip(tmp_path / 'teacher')}",
            "distill.batch_norm=frozen",
            "distill.teacher_view=same_aug",
        ),
        *prompts,
    )
    code, table = edge(*words, out="one", settings=settings)
    assert code == 0, table
    assert labels_shown == {NO_LABEL}  # promptkd's student learns without labels, and could not look at one
    asked = [word for value in (*tiny, *settings) for word in ("--set", value)]
    done = launch(
        TORCHRUN, "-m", "vlkd_edge", *words, "--dataset", data, "--json", "--out", tmp_path / "two", *asked
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)  # by the first process alone
    assert [row["method"] for row in printed["rows"]] == ["teacher", "promptkd", "vlm-ood"]

    one, two = (weights(tmp_path / count, "vlm-ood") for count in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 20
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name], tensor, rtol=1e-3, atol=2e-5, err_msg=name)
    one, two = (weights(tmp_path / count, "promptkd") for count in ("one", "two"))
    # What shifts all rows alike the projector's norm takes off again: such gradients are rounding alone.
    head = {name for name in one if name.startswith("head.")} - {"head.first.bias", "head.norm.running_mean"}
    assert one.keys() == two.keys() and len(head) == 7
    for name in head:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert list((tmp_path / "two").glob("stages/prompts-*/prompts.safetensors"))


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_process_that_fails_is_told_and_the_next_training_goes_on(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        """
import torch, torch.distributed as dist
from vlkd_distill import processes
from vlkd_distill import processes
from vlkd_distill.launched import launched
from vlkd_runtime.errors import UnavailableError

class Work:
    def __init__(self, good):
        self.good = good
    def __call__(self, ring):
        if not self.good and ring.rank:
            raise LookupError("this one is broken")
        total = torch.tensor([ring.rank + 1.0])
        dist.all_reduce(total)
        print(f"{ring.rank} of {ring.count} finds {total.item():g}", flush=True)

launch = launched()
if launch.rank:
    processes.serve(launch)
else:
    with processes.leading():
        try:
            processes.run(2, Work(False), Work(False))
        except UnavailableError as error:
            print(error, flush=True)
        processes.run(2, Work(True), Work(True))
"""
    )
    done = launch(launcher, script)
    assert done.returncode == 0, done.stderr
    assert "Training needs all its 2 processes" in done.stdout
    assert "LookupError: this one is broken" in done.stderr
    assert all(f"{rank} of 2 finds 3" in done.stdout for rank in (0, 1))


def test_the_environment_tells_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", dict(SECOND_OF_TWO))  # of another launcher, which is not ours to obey
    assert launched() is None
    monkeypatch.setattr("os.environ", {"TORCHELASTIC_RUN_ID": "none", **SECOND_OF_TWO})
    assert launched() == Launch(rank=1, count=2, local=1, neighbours=2)
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    monkeypatch.setattr("os.environ", {"TORCHELASTIC_RUN_ID": "none", **alone})
    assert launched() is None


@pytest.mark.parametrize(
    "wrong", [{"RANK": "2"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "x"}, {"LOCAL_WORLD_SIZE": "3"}]
)
def test_an_environment_that_contradicts_itself_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: Mapping[str, str]
) -> None:
    monkeypatch.setattr("os.environ", {"TORCHELASTIC_RUN_ID": "none", **SECOND_OF_TWO, **wrong})
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"found .*{name}={value}"):
        launched()


def test_a_configuration_has_the_processes_that_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **SECOND_OF_TWO}.items():
        monkeypatch.setenv(name, value)
    assert configfile.load(None).distill.processes == 2
    assert configfile.load(None, settings=["distill.processes=2"]).distill.processes == 2
    with pytest.raises(ConfigError, match="expected 2 or none, as torchrun has started so many, found 3"):
        configfile.load(None, settings=["distill.processes=3"])
    with pytest.raises(ConfigError, match="at most the batch of 1"):
        configfile.load(None, settings=["distill.batch=1"])


@pytest.mark.parametrize(
    "words",
    [
        ("build",),
        ("bench", "dg", "--methods", "erm"),
        ("bench", "disjoint"),
        ("bench", "data-free"),
        ("targets",),
    ],
    ids=" ".join,
)
def test_every_verb_that_trains_has_the_other_processes_help(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", **SECOND_OF_TWO}.items():
        monkeypatch.setenv(name, value)
    served: list[Launch] = []
    monkeypatch.setattr(processes, "serve", served.append)
    monkeypatch.setattr(sys, "argv", ["vlkd-edge", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert served == ([] if words == ("targets",) else [Launch(1, 2, 1, 2)])
