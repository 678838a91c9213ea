"""The prefix cache: finds filled pages by their tokens, so that equal prefixes are computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import repeat

import numpy as np

from medha_jax.kv.allocator import PageAllocator
from medha_jax.kv.idle import IdlePages

# 256 bits: a tenant who chooses tokens cannot make two prefixes collide and read another tenant's text
DIGEST_BYTES = 32
LARGEST_BLOCK = 256  # most pages whose tokens are converted at once
_ROOT = b"root"


def root_digest(salt: str, tenant: str = "") -> bytes:
    """Start of the digest chains of one tenant with one salt.

    The tenant is the hash's key, of at most 64 bytes, and so apart from the salt: no salt of one tenant gives the root
    of another. `_ROOT` keeps a root apart from every page's digest, whatever the salt is.
    """
    return hashlib.blake2b(salt.encode(), digest_size=DIGEST_BYTES, key=tenant.encode(), person=_ROOT).digest()


def page_digests(tokens: Sequence[int], first: int, past: int, page_size: int, digest: bytes) -> Iterator[bytes]:
    """The digests of the pages `[first, past)`. Each digest covers its predecessor's and its page's tokens as int64.

    Lazy: it converts tokens in growing blocks as they are needed. A prompt whose first page is unknown costs one hash,
    however long it is.

    Args:
        tokens: the request's tokens from its start: a tuple, an array or a range. Every page must be full.
        first: first page.
        past: page after the last.
        page_size: tokens in a page.
        digest: digest of page `first - 1`, or the root.
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


class DigestChain:
    """The digests of the pages of one request, each computed once, when it is first asked for.

    Its tokens may become more, but the first ones stay as they are.
    """

    def __init__(self, salt: str, page_size: int, tenant: str = "") -> None:
        self._page_size = page_size
        self._root = root_digest(salt, tenant)
        self._digests: list[bytes] = []

    def __len__(self) -> int:
        return len(self._digests)

    def first(self, pages: int) -> DigestChain:
        """A chain of its own for a request with the same first `pages` pages; it knows the same digests of them."""
        chain = copy(self)
        chain._digests = self._digests[:pages]
        return chain

    def between(self, start: int, end: int) -> list[bytes]:
        """The digests of the pages `[start, end)`, as far as they are known."""
        return self._digests[start:end]

    def extend(self, tokens: Sequence[int], pages: int) -> Iterator[bytes]:
        """Compute the digests that are missing of the first `pages` pages, which `tokens` fill; lazily."""
        known = self._digests
        last = known[-1] if known else self._root
        for digest in page_digests(tokens, len(known), pages, self._page_size, last):
            known.append(digest)
            yield digest


class PrefixIndex:
    """Finds the filled pages of one pool by the digest of all tokens up to their end.

    The index holds every page that it knows. A page is *idle* if no request holds it as well. Idle pages stay until
    their space is needed. The least recently used one goes first; within one request, the last page goes first.

    Owns the digests and the order in which idle pages were used.

    Args:
        pool: the allocator of these pages.
    """

    def __init__(self, pool: PageAllocator) -> None:
        self._pool = pool
        self._page: dict[bytes, int] = {}
        self._digest: dict[int, bytes] = {}
        self._idle = IdlePages(pool.pages)

    @property
    def idle(self) -> int:
        """Known pages that no request holds."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Known pages that requests hold."""
        return len(self._page) - len(self._idle)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._page

    def leading(self, digests: Sequence[bytes]) -> int:
        """Number of known pages of a chain before the first unknown one."""
        known = list(map(self._page.__contains__, digests))
        return known.index(False) if False in known else len(known)

    def find(self, digests: Sequence[bytes]) -> np.ndarray:
        """The known pages of a chain, up to the first unknown one, int64 `[pages]`."""
        pages = np.fromiter(map(self._page.get, digests, repeat(-1)), np.int64, len(digests))
        unknown = np.flatnonzero(pages < 0)
        return pages[: unknown[0]] if len(unknown) else pages

    def touch(self, digests: Sequence[bytes]) -> None:
        """Make the known pages of a chain the most recently used ones."""
        known = self._pages([digest for digest in reversed(digests) if digest in self._page])
        self._idle.add(known[self._idle.among(known)])

    def count_idle(self, pages: np.ndarray) -> int:
        """Number of idle pages among these."""
        return int(self._idle.among(pages).sum())

    def hold(self, pages: np.ndarray) -> None:
        """Add one request to the holders of known pages."""
        self._pool.share(pages)
        self._idle.discard(pages)

    def publish(self, pages: Sequence[int], digests: Sequence[bytes]) -> None:
        """Make filled pages known. If another known page has the same content, that one stays."""
        new = [(page, digest) for page, digest in zip(pages, digests, strict=True) if digest not in self._page]
        self._pool.share([page for page, _ in new])
        for page, digest in new:
            self._page[digest] = page
            self._digest[page] = digest

    def release(self, pages: Sequence[int], digests: Sequence[bytes]) -> None:
        """Release a request's pages; `digests` are those of its first pages.

        Its prefix becomes the most recently used, even if another page holds the same content. A prefix that was
        evicted meanwhile is known again.
        """
        if self.leading(digests) < len(digests):
            self.publish(pages[: len(digests)], digests)
        self._pool.release(pages)
        known = self._pages(digests)[::-1]
        self._idle.add(known[self._pool.holders(known) == 1])

    def forget(self) -> None:
        """Drop every known page: their contents are gone. None may be in use."""
        self.evict(self.idle)

    def evict(self, count: int) -> list[tuple[int, bytes]]:
        """Drop the `count` least recently used idle pages; returns them with their digests."""
        pages = self._idle.pop(count)
        dropped = [(page, self._digest.pop(page)) for page in pages]
        for _, digest in dropped:
            del self._page[digest]
        self._pool.release(pages)
        return dropped

    def _pages(self, digests: Sequence[bytes]) -> np.ndarray:
        return np.fromiter(map(self._page.__getitem__, digests), np.int64, len(digests))
