"""Pages in host memory: which prefixes stand where. No device."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class HostUse:
    """Pages of all groups: `used` places, and pages that were `stored` in host memory and `restored` from it so far."""

    used: int = 0
    stored: int = 0
    restored: int = 0


UNUSED = HostUse()


class HostIndex:
    """Owns the places of one group, and their order of use: the least recently used content goes first.

    Args:
        places: pages that fit.
    """

    def __init__(self, places: int) -> None:
        self._free = list(range(places - 1, -1, -1))
        self._place: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._place

    def read(self, digest: bytes) -> int:
        """The place of a page's content, which counts as used now."""
        self._place.move_to_end(digest)
        return self._place[digest]

    def write(self, digest: bytes) -> int | None:
        """A place for a page's content; None if it stands in one already, or there is none at all."""
        if digest in self._place:
            self._place.move_to_end(digest)
            return None
        if not self._free:
            if not self._place:
                return None
            self._free.append(self._place.popitem(last=False)[1])
        place = self._place[digest] = self._free.pop()
        return place

    def clear(self) -> None:
        """Forget all contents."""
        self._free += self._place.values()
        self._place.clear()
