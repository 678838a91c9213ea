"""Which pages hold which tokens, so that a prompt that begins like an earlier one need not be computed again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from medha_jax.kv.allocator import PageAllocator

# 256 bits: even who may choose the tokens cannot make two prefixes collide, and so read another tenant's text
DIGEST_BYTES = 32
LARGEST_BLOCK = 256  # pages whose tokens are converted at once


def root_digest(salt: str) -> bytes:
    """Where the chains of one tenant begin."""
    return hashlib.blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()


def page_digests(tokens: Sequence[int], first: int, past: int, page_size: int, digest: bytes) -> Iterator[bytes]:
    """The digests of the pages `[first, past)`: each of its predecessor's digest and its own tokens, as int64.

    Lazy: only the pages that are asked for are read, and soon those after them, so a prompt without a known first
    page costs one hash, however long it is.

    Args:
        tokens: of the request from its start; a tuple, an array or a range. Every page must be full.
        first: page to begin with.
        past: page to end before.
        page_size: tokens in a page.
        digest: of page `first - 1`, or the root.
    """
    block = 1
    while first < past:
        block = min(block, past - first)
        part = _array(tokens[first * page_size : (first + block) * page_size])
        data = memoryview(part.astype("<i8").tobytes())
        size = 8 * page_size
        for at in range(0, block * size, size):
            chained = hashlib.blake2b(digest, digest_size=DIGEST_BYTES)
            chained.update(data[at : at + size])
            digest = chained.digest()
            yield digest
        first, block = first + block, min(2 * block, LARGEST_BLOCK)


def _array(tokens: Sequence[int]) -> np.ndarray:
    if isinstance(tokens, range):
        return np.arange(tokens.start, tokens.stop, tokens.step, dtype=np.int64)
    return np.asarray(tokens, np.int64)


class PrefixIndex:
    """Finds the filled pages of one pool by the digest of everything up to their end.

    The index is itself a holder of every page that it knows. A page that no request holds beside it is *idle*: it
    stays until its place is needed, the least recently used one first, and of one request the last page first.

    Owner of the digests and of the order in which idle pages were used.

    Args:
        pool: the allocator of these pages.
    """

    def __init__(self, pool: PageAllocator) -> None:
        self._pool = pool
        self._page: dict[bytes, int] = {}
        self._digest: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def idle(self) -> int:
        """Known pages that no request holds; they are given up when others need the place."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Known pages that requests hold."""
        return len(self._page) - len(self._idle)

    def find(self, digests: Iterable[bytes]) -> list[tuple[int, bytes]]:
        """The known pages of a chain, from its first page to the first one that is not known."""
        found = []
        for digest in digests:
            page = self._page.get(digest)
            if page is None:
                break
            found.append((page, digest))
        return found

    def count_idle(self, pages: Iterable[int]) -> int:
        """How many of these pages are idle."""
        return sum(page in self._idle for page in pages)

    def hold(self, pages: Sequence[int]) -> None:
        """Give known pages to one more request."""
        self._pool.share(pages)
        for page in pages:
            self._idle.pop(page, None)

    def publish(self, pages: Sequence[int], digests: Sequence[bytes]) -> None:
        """Make filled pages known; where another page has the same content, that one stays the known one."""
        new = [(page, digest) for page, digest in zip(pages, digests, strict=True) if digest not in self._page]
        self._pool.share([page for page, _ in new])
        for page, digest in new:
            self._page[digest] = page
            self._digest[page] = digest

    def release(self, pages: Sequence[int], digests: Sequence[bytes]) -> None:
        """Take a request from its pages, the first of which have these digests.

        What it used is now the most recently used, its first page last, even where the known page of that content is
        another one. A prefix that was given up meanwhile is known again.
        """
        self.publish(pages[: len(digests)], digests)
        self._pool.release(pages)
        known = [self._page[digest] for digest in reversed(digests)]
        for page, holders in zip(known, self._pool.holders(known).tolist(), strict=True):
            if holders == 1:
                self._idle[page] = None
                self._idle.move_to_end(page)

    def forget(self) -> None:
        """Give up every page, because none holds any more what it held; none may be in use."""
        self.evict(self.idle)

    def evict(self, count: int) -> None:
        """Give up the `count` idle pages that were not used for longest."""
        pages = [self._idle.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            del self._page[self._digest.pop(page)]
        self._pool.release(pages)
