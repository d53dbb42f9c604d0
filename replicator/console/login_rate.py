"""How often an address may try a wrong token. Pure.

A token is 256 random bits, which nobody guesses; the bound keeps a script from filling the log and the loop with tries.

Invariants:
1. An address (of IPv6 one /64) has BURST tries that fail, and gets one back each REGAIN_S. A good token costs none.
2. At most ADDRESSES are remembered; of more, the one that failed longest ago is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

BURST: Final = 5
REGAIN_S: Final = 12.0
ADDRESSES: Final = 1024


class LoginRate:
    """`clock`: seconds of any beginning, which only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()  # when all tries are regained

    def __len__(self) -> int:
        return len(self._free_at)

    def wait_s(self, address: str) -> float:
        """How long until the address may try again, 0: now."""
        owed_s = self._free_at.get(address, 0.0) - self._clock()
        return max(owed_s - (BURST - 1) * REGAIN_S, 0.0)

    def failed(self, address: str) -> None:
        now_s = self._clock()
        self._free_at[address] = max(self._free_at.get(address, now_s), now_s) + REGAIN_S
        self._free_at.move_to_end(address)
        if len(self._free_at) > ADDRESSES:
            self._free_at.popitem(last=False)
