"""One training in several processes: each runs the network on its part of every batch.

All processes draw the same batches and views from the same seeds, and each loss is taken of the whole batch's
outputs, so that losses that compare samples, and means over a part of them, are what one process computes; so are
statistics that a layer takes of a batch (`Ring.add_up`). The gradients of the parts are added up: the sum is the
gradient of one process, up to rounding.

Who starts them: `run` by itself, on this machine; or torchrun, on one or many. Then the first process does what it does
alone, and calls the others, which `serve`, for each training.

Letters used in shapes: B batch, D width of the head.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlkd_runtime.errors import TrainingError, UnavailableError, first_line

from .compute import CPU, backend_of
from .launched import Launch, launched

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_HOST = "127.0.0.1"
# Keys in torchrun's store: how many calls there were, and what each says; a call is the name of a backend, or this.
_CALLS, _CALL, _LEAVE = "vlkd/calls", "vlkd/call", "leave"
# Between two calls the first process may render, embed, export or measure for as long as it likes.
_LONG = datetime.timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Ring:
    """The processes of one training, seen from one of them.

    Attributes:
        rank: which one this is; the first, 0, writes files and tells of progress.
        count: how many there are.
        local: which one this is on its machine, and so which of its GPUs it takes.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes for all."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """This process's samples of a batch; parts differ by one sample at most."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def join(self, own: Tensor, total: int) -> Tensor:
        """Put the parts of all processes together: ``(part, D)`` to ``(total, D)``, with gradient.

        The gradient that comes back to a part is that of the one loss that all processes compute.
        """
        if self.count == 1:
            return own
        joined: Tensor = _Join.apply(own.float(), self.part(total), total)
        return joined

    def add_up(self, own: Tensor) -> Tensor:
        """Add up what each process has of its part of a batch, with gradient: a part hears what all say of the sum."""
        if self.count == 1:
            return own
        total: Tensor = _AddUp.apply(own)
        return total

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in place."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        done = 0
        for gradient in gradients:
            gradient.copy_(flat[done : done + gradient.numel()].view_as(gradient))
            done += gradient.numel()


ALONE = Ring()


class _Join(torch.autograd.Function):
    """Zeros but for the own part, added up over the processes; backward gives the own part of the gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: slice, total: int) -> Tensor:
        ctx.part = part
        joined = own.new_zeros((total, *own.shape[1:]))
        joined[part] = own
        dist.all_reduce(joined)
        return joined

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0][ctx.part], None, None


class _AddUp(torch.autograd.Function):
    """The sum over the processes; backward adds up what each process's part of the loss says of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def run(
    count: int,
    first: Callable[[Ring], None],
    others: Callable[[Ring], None],
    device: torch.device = CPU,
) -> None:
    """Do the same work in ``count`` processes, of which this one is the first.

    Args:
        count: how many; with 1, the work is done here and nothing is started.
        first: the work, as this process does it.
        others: the same work for the other processes, to whom it is handed as a pickle.
        device: where the first one computes; with a GPU for each, gradients go from one to another directly.

    Raises:
        UnavailableError: another process failed; its own error is on standard error.
    """
    if count == 1:
        first(ALONE)
        return
    launch = launched()
    start = _started(count, others, device) if launch is None else _called(launch, others, device)
    with start as ring:
        try:
            first(ring)
        except RuntimeError as error:  # torch's, also when a process that it waits for is gone
            msg = (
                f"Training needs all its {count} processes (distill.processes), and one failed; its own error is above "
                f"if it was another than this: {first_line(error)}."
            )
            raise UnavailableError(msg) from error


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Be the first of the processes that torchrun has started, if it has: the others leave when this ends."""
    launch = launched()
    if launch is None:
        yield
        return
    store = _store()
    try:
        yield
    finally:
        _call(store, _LEAVE)


def serve(launch: Launch) -> None:
    """Be another of the processes that torchrun has started: do what the first one calls for, until it leaves.

    What fails here is told on standard error, and fails the first one's training, too; whether to go on is its affair.
    """
    # It waits inside torch, where Python hears no signal; the first process says what an interrupt left.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    store, ring, number = _store(), Ring(launch.rank, launch.count, launch.local), 0
    while True:
        number += 1
        store.wait([f"{_CALL}/{number}"], _LONG)
        call = store.get(f"{_CALL}/{number}").decode()
        if call == _LEAVE:
            return
        try:
            with _connected(ring, call, store=_rooms(store, number)):
                work: list[Any] = [None]
                dist.broadcast_object_list(work)
                work[0](ring)
        except TrainingError:  # all find the same, and the first process tells it
            pass
        except Exception:
            traceback.print_exc(file=sys.stderr)


@contextlib.contextmanager
def _called(launch: Launch, others: Callable[[Ring], None], device: torch.device) -> Iterator[Ring]:
    """Have the processes of the launcher do this work."""
    ring, backend, store = (
        Ring(0, launch.count, launch.local),
        backend_of(device, launch.neighbours),
        _store(),
    )
    number = _call(store, backend)
    with _connected(ring, backend, store=_rooms(store, number)):
        dist.broadcast_object_list([others])
        yield ring


def _call(store: Store, word: str) -> int:
    number = store.add(_CALLS, 1)
    store.set(f"{_CALL}/{number}", word)
    return number


def _store() -> Store:
    """What all processes of the launcher read and write."""
    from torch.distributed.rendezvous import rendezvous

    store: Store = next(rendezvous("env://"))[0]
    return store


def _rooms(store: Store, number: int) -> Store:
    """Keys of its own for each training."""
    from torch._C._distributed_c10d import PrefixStore

    return PrefixStore(f"vlkd/training/{number}", store)


@contextlib.contextmanager
def _started(count: int, others: Callable[[Ring], None], device: torch.device) -> Iterator[Ring]:
    """Start processes on this machine for this work, and see them end."""
    address, backend = f"tcp://{_HOST}:{_free_port()}", backend_of(device, count)
    # Forked children would share torch's threads and locks with this one, and hang.
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_other, args=(others, Ring(rank, count, rank), address, backend), daemon=True)
        for rank in range(1, count)
    ]
    for process in started:
        process.start()
    try:
        with _connected(Ring(0, count), backend, address):
            yield Ring(0, count)
    finally:
        for process in started:
            process.join(30)  # its peer is gone or done, so it ends by itself
            if process.is_alive():
                process.terminate()
                process.join()


def _other(work: Callable[[Ring], None], ring: Ring, address: str, backend: str) -> None:
    with _connected(ring, backend, address):
        try:
            work(ring)
        except TrainingError:  # all find the same, and the first process tells it
            raise SystemExit(TrainingError.exit_code) from None


@contextlib.contextmanager
def _connected(
    ring: Ring, backend: str, address: str | None = None, *, store: Store | None = None
) -> Iterator[None]:
    if backend == "nccl":
        torch.cuda.set_device(ring.local)
    dist.init_process_group(backend, address, store=store, rank=ring.rank, world_size=ring.count)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
