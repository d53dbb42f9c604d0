"""Which life of the host's filesystem it is: "same boot id" is not "the page cache survived"."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError
from snapfs.live.backing import host_life
from snapfs.live.backing.host_life import HostLife, LifeRecord, mount_number

Begin = Callable[..., str]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """The token of a life that begins or goes on; at most one descriptor is held at a time."""
    with ExitStack() as held:

        def begin(boot: str = "boot", mount: int = 7, adopting: bool = False) -> str:
            held.close()
            life = HostLife(str(tmp_path), Disk(), boot, adopting=adopting, number_of=lambda path: mount)
            held.callback(life.close)
            return life.token

        yield begin


def forget_inode(path: Path) -> None:
    """What an unmount does to the hint: the same bytes in an inode without a hint."""
    data = (path / "life").read_bytes()
    os.unlink(path / "life")
    (path / "life").write_bytes(data)


def test_a_life_goes_on_while_a_witness_says_so(begin: Begin, tmp_path: Path) -> None:
    token = begin()
    assert begin() == token
    assert begin(mount=8) == token, "the inode is still in memory: the same superblock, seen through another mount"
    forget_inode(tmp_path)
    assert begin(mount=7) == token, "the same mount"


@pytest.mark.parametrize("mount", [8, 0])
def test_without_a_witness_another_life_begins(begin: Begin, tmp_path: Path, mount: int) -> None:
    token = begin()
    forget_inode(tmp_path)
    other = begin(mount=mount)
    assert other != token
    assert begin(mount=mount) == other


def test_mounts_without_a_number_are_not_taken_for_the_same(begin: Begin, tmp_path: Path) -> None:
    token = begin(mount=0)
    forget_inode(tmp_path)
    assert begin(mount=0) != token


def test_another_boot_is_another_life_whatever_the_witnesses_say(begin: Begin) -> None:
    token = begin("boot")
    assert begin("another") != token


def test_who_adopts_needs_no_witness(begin: Begin, tmp_path: Path) -> None:
    token = begin()
    forget_inode(tmp_path)
    assert begin(mount=8, adopting=True) == token
    forget_inode(tmp_path)
    assert begin("another", adopting=True) != token


def test_an_upgrade_under_a_living_mount_goes_on_with_the_boot_id(begin: Begin) -> None:
    assert begin("boot", adopting=True) == "boot"


@pytest.mark.parametrize("adopting", [False, True])
def test_a_withdrawn_life_is_taken_over_by_nobody(begin: Begin, tmp_path: Path, adopting: bool) -> None:
    token = begin()
    life = HostLife(str(tmp_path), Disk(), "boot", number_of=lambda path: 7)
    assert life.token == token
    life.withdraw()
    life.close()
    assert begin(adopting=adopting) != token


def test_every_flipped_bit_and_every_truncation_begins_another_life(begin: Begin, tmp_path: Path) -> None:
    token, path = begin(), tmp_path / "life"
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        assert host_life.unpack(str(path), bytes(flipped)) is None
    for length in range(len(whole)):
        assert host_life.unpack(str(path), whole[:length]) is None
    path.write_bytes(whole[:-1])
    assert begin() != token


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "life").write_bytes(LifeRecord("boot", 7, "token").pack(host_life.VERSION + 1))
    with pytest.raises(VersionError, match="use a newer snapfs"):
        HostLife(str(tmp_path), Disk(), "boot")


def test_the_kernel_numbers_this_mount(tmp_path: Path) -> None:
    number = mount_number(str(tmp_path))
    assert number == mount_number(str(tmp_path))
    assert mount_number(str(tmp_path / "nothing here")) == 0
    assert number == 0 or number != mount_number("/proc")


def test_a_probe_reports_why_the_host_cannot_be_written_to(tmp_path: Path) -> None:
    life = HostLife(str(tmp_path), Disk(), "boot")
    assert life.probe() == 0
    os.unlink(life.path)
    assert life.probe() != 0
    life.close()


def test_the_record_of_format_1_is_read_as_it_was_written() -> None:
    """The bytes, written down: a later snapfs must read them."""
    golden = bytes.fromhex(
        "736e61704c4946450100000000000000070000000000000030303030303030302d313131312d323232322d333333332d34343434343434"
        "343434343461616161616161612d626262622d636363632d646464642d656565656565656565656565ea9a49b7"
    )
    record = LifeRecord("00000000-1111-2222-3333-444444444444", 7, "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
    assert host_life.unpack("life", golden) == record
    assert record.pack() == golden
