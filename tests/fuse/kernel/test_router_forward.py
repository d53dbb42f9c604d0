"""The router between a kernel and a libfuse that are both this test: what goes through, in which pieces, and the end.

A SOCK_SEQPACKET socket stands for /dev/fuse: each read gives one request, each write is one reply.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from snapfs.fuse.kernel import router as routing

if TYPE_CHECKING:
    from snapfs.fuse.kernel._router import Router

if routing.why_not():
    pytest.skip(routing.why_not() or "", allow_module_level=True)

from snapfs.fuse.kernel import _router
from tests.fakes.patience import PATIENCE_S

PIECE = 70_000
LOOKUP, FORGET, READ, WRITE, INTERRUPT, BATCH_FORGET, READDIR = 1, 2, 15, 16, 36, 42, 28
IN = struct.Struct("=IIQQIIII")
OUT = struct.Struct("=IiQ")
IO = struct.Struct("=QQIIQII")  # read_in and write_in: fh, offset, size, flags, lock owner, flags, padding
DEADLINE_S = PATIENCE_S


class Both:
    """The kernel's and libfuse's ends of one router."""

    def __init__(self) -> None:
        self.kernel, device = routing.socket_pair()
        ours, self.libfuse = routing.socket_pair()
        self.router: Router = _router.Router(device.detach(), ours.detach(), self.libfuse.fileno(), PIECE, 3, 20e-6)
        for end in (self.kernel, self.libfuse):
            end.settimeout(DEADLINE_S)
        self.router.start()

    def close(self) -> None:
        self.router.stop()
        self.kernel.close()
        self.libfuse.close()

    def request(self, opcode: int, unique: int, body: bytes = b"", node: int = 7) -> None:
        self.kernel.send(IN.pack(IN.size + len(body), opcode, unique, node, 0, 0, 0, 0) + body)

    def taken(self) -> tuple[int, int, bytes]:
        """What libfuse reads next: opcode, unique, body."""
        raw = self.libfuse.recv(1 << 21)
        length, opcode, unique, *_ = IN.unpack_from(raw)
        assert length == len(raw)
        return opcode, unique, raw[IN.size :]

    def reply(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        self.libfuse.send(OUT.pack(OUT.size + len(body), -error, unique) + body)

    def answer(self) -> tuple[int, int, bytes]:
        """What the kernel gets next: unique, errno, body."""
        raw = self.kernel.recv(1 << 21)
        length, error, unique = OUT.unpack_from(raw)
        assert length == len(raw)
        return unique, -error, raw[OUT.size :]


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


def test_a_request_and_its_reply_go_through_unchanged(both: Both) -> None:
    both.request(LOOKUP, 2, b"name\0")
    assert both.taken() == (LOOKUP, 2, b"name\0")
    both.reply(2, b"entry")
    assert both.answer() == (2, 0, b"entry")
    both.request(LOOKUP, 1 << 63 | 4, b"sent again\0")
    assert both.taken() == (LOOKUP, 1 << 63 | 4, b"sent again\0")
    both.reply(1 << 63 | 4, error=errno.ENOENT)
    assert both.answer() == (1 << 63 | 4, errno.ENOENT, b"")


def test_the_thread_that_promised_brings_the_replies_and_learns_who_is_next(both: Both) -> None:
    both.router.promise(True)
    both.request(LOOKUP, 6, b"a\0")
    deadline = time.monotonic() + DEADLINE_S
    while (unique := both.router.next(1e-3)) == 0 and time.monotonic() < deadline:
        pass
    assert unique == 6
    assert both.taken()[1] == 6
    both.reply(6, b"x")
    assert not select.select([both.kernel], [], [], 0.05)[0], "no other thread was to deliver it"
    assert both.router.next(0.0) == 0
    assert both.answer() == (6, 0, b"x")
    both.request(LOOKUP, 8, b"b\0")
    assert both.taken()[1] == 8
    both.reply(8)
    both.router.promise(False)
    assert both.answer() == (8, 0, b"")


def test_a_large_write_goes_in_pieces_and_has_one_answer(both: Both) -> None:
    data = os.urandom(2 * PIECE + 5000)
    both.request(WRITE, 10, IO.pack(3, 1000, len(data), 0, 0, 0, 0) + data)
    received = b""
    while len(received) < len(data):
        opcode, unique, body = both.taken()
        _, offset, size, *_ = IO.unpack_from(body)
        assert (opcode, unique, offset) == (WRITE, 10, 1000 + len(received))
        assert size == len(body) - IO.size <= PIECE
        received += body[IO.size :]
        assert not select.select([both.libfuse], [], [], 0.01)[0], "one piece at a time"
        both.reply(10, struct.pack("=II", size, 0))
    assert received == data
    assert both.answer() == (10, 0, struct.pack("=II", len(data), 0))


def test_an_error_of_a_piece_is_one_of_the_whole(both: Both) -> None:
    data = bytes(2 * PIECE)
    both.request(WRITE, 10, IO.pack(3, 0, len(data), 0, 0, 0, 0) + data)
    both.taken()
    both.reply(10, struct.pack("=II", PIECE, 0))
    both.taken()
    both.reply(10, error=errno.ENOSPC)
    assert both.answer() == (10, errno.ENOSPC, b"")


@pytest.mark.parametrize("there", [3 * PIECE, 2 * PIECE + 17, 2 * PIECE, 5, 0])
def test_a_large_read_is_joined_up_to_the_end_of_the_file(both: Both, there: int) -> None:
    content = os.urandom(there)
    both.request(READ, 12, IO.pack(3, 0, 3 * PIECE, 0, 0, 0, 0))
    while not select.select([both.kernel], [], [], 0)[0]:
        if not select.select([both.libfuse], [], [], 0.01)[0]:
            continue
        _, offset, size, *_ = IO.unpack_from(both.taken()[2])
        both.reply(12, content[offset : offset + size])
    assert both.answer() == (12, 0, content)


def test_a_listing_is_asked_for_no_more_than_a_message_holds(both: Both) -> None:
    both.request(READDIR, 14, IO.pack(3, 0, 1 << 20, 0, 0, 0, 0))
    assert IO.unpack_from(both.taken()[2])[2] == PIECE


def test_many_forgets_come_in_several_messages(both: Both) -> None:
    ones = [(node, node % 5) for node in range(10_000)]
    body = b"".join(struct.pack("=QQ", *one) for one in ones)
    both.request(BATCH_FORGET, 16, struct.pack("=II", len(ones), 0) + body)
    received: list[tuple[int, int]] = []
    while len(received) < len(ones):
        opcode, _, body = both.taken()
        count, _ = struct.unpack_from("=II", body)
        assert opcode == BATCH_FORGET
        assert len(body) == 8 + 16 * count <= PIECE
        received += struct.iter_unpack("=QQ", body[8:])  # type: ignore[arg-type]
    assert received == ones


def test_an_interrupt_wakes_nobody(both: Both) -> None:
    both.request(INTERRUPT, 19, struct.pack("=Q", 18))
    both.request(LOOKUP, 20, b"x\0")
    assert both.taken()[1] == 20


def test_requests_that_find_no_room_wait_in_order_and_keep_no_thread(both: Both) -> None:
    """More than the socket holds, while none is taken; three threads read the device."""
    count, size = 400, 60_000
    sender = threading.Thread(target=lambda: [both.request(WRITE, 2 * n, IO.pack(3, 0, size, 0, 0, 0, 0) + bytes(size))
                                              for n in range(1, count + 1)])  # fmt: skip
    sender.start()
    sender.join(DEADLINE_S)
    assert not sender.is_alive(), "the router stopped reading"
    uniques = [both.taken()[1] for _ in range(count)]
    assert sorted(uniques) == [2 * n for n in range(1, count + 1)]


def test_the_end_of_the_mount_is_the_end_of_the_requests(both: Both) -> None:
    both.request(LOOKUP, 22, b"last\0")
    assert both.taken()[1] == 22
    both.kernel.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + DEADLINE_S
    while (unique := both.router.next(1e-3)) == 0:
        assert time.monotonic() < deadline
    assert unique == -1
    both.router.stop()
    assert both.router.next(0.0) == -1
    both.router.stop()


def test_a_stop_takes_no_request_with_it(both: Both) -> None:
    """What was not read is still there for the next who reads."""
    os.set_blocking(both.kernel.fileno(), True)
    both.router.stop()
    assert both.router.next(0.0) == -1


def test_settle_counts_what_was_sent_before(both: Both) -> None:
    for n in range(1, 6):
        both.request(LOOKUP, 2 * n, b"x\0")
    deadline = time.monotonic() + DEADLINE_S
    while both.router.settle() < 5:
        assert time.monotonic() < deadline
    assert {both.taken()[1] for _ in range(5)} == {2, 4, 6, 8, 10}


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="hold an xattr"):
        _router.Router(-1, -1, -1, 4096, 1, 0.0)
    with pytest.raises(ValueError, match="threads"):
        _router.Router(-1, -1, -1, PIECE, 0, 0.0)
