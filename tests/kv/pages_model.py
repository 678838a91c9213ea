"""A model of all KV pages: random requests come, compute, go, and find their prefixes on devices and on the host.

`python -m tests.kv.pages_model --operations 1000000 --seed 1` makes as many random operations and checks after each
that no page is lost and none is owned twice.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np

from medha_jax.kv.allocator import OutOfPagesError
from medha_jax.kv.groups import GroupedPages
from medha_jax.kv.holding import Holding
from medha_jax.kv.prefix import DigestChain
from medha_jax.plan import HostTier

PAGE, PER_GROUP = 4, 16
Content = tuple[str, tuple[int, ...]]  # salt and all tokens up to the end of a page


@dataclass
class Request:
    """One request: `tokens` of prompt and output, of which `computed` are written."""

    holding: Holding
    tokens: list[int]
    salt: str
    computed: int


class PagesModel:
    """Writes down what stands in every page and every place, and what must be true of it."""

    def __init__(self, groups: int, pages: int, places: int) -> None:
        self.groups, self.pages, self.places = groups, pages, places
        host = HostTier(places, 1.0)
        self.pools = GroupedPages(groups, pages, PAGE, PER_GROUP, prefix_cache=True, host=host)
        self.running: list[Request] = []
        self.written: dict[tuple[int, int], Content] = {}
        self.hosted: dict[tuple[int, int], Content] = {}
        self.restored = self.stored = 0

    def reserve(self, prompt: list[int], output: int, salt: str, backwards: bool, worth: float, most: int) -> None:
        """A request comes, once up to `most` pages of its prefix came back; computing a token takes `worth` seconds."""
        tokens = len(prompt) + output
        groups = list(reversed(range(self.groups))) if backwards else None
        chain = self.pools.chain(salt)
        first = groups[0] if groups else max(range(self.groups), key=lambda group: self.pools.free[group])
        found = self.pools.cached_prefix(prompt, chain, lambda start, end: (end - start) * worth)
        assert all(mine >= least for mine, least in zip(found, self.pools.cached_prefix(prompt, chain), strict=True))
        if self.places:
            self._bring(first, prompt, chain, found[first] // PAGE, most)
        free, known = self.pools.free, self.pools.cached_prefix(prompt, chain)
        try:
            holding = self.pools.reserve(tokens, groups, prompt, chain)
        except OutOfPagesError:
            assert self.pools.free == free
            return
        assert holding.cached == known[holding.groups[0]]
        assert holding.cached % PAGE == 0
        assert holding.cached <= min(len(prompt) - 1, PER_GROUP)
        for number, page in enumerate(holding.adopted):
            assert self.written[holding.groups[0], page] == (salt, tuple(prompt[: (number + 1) * PAGE]))
        self.running.append(Request(holding, prompt + [7] * output, salt, holding.cached))
        needed = [-(-min(PER_GROUP, tokens - start) // PAGE) for start in range(0, tokens, PER_GROUP)]
        assert list(holding.owned) == needed

    def _bring(self, group: int, prompt: list[int], chain: DigestChain, end: int, most: int) -> None:
        free, before = self.pools.free, self.pools.cached_prefix(prompt, chain)[group]
        at, restored = self.pools.bring(group, chain, (0, end), most), self.restored
        assert self.pools.free == free, "what comes back is in the prefix cache"
        self.copy()
        brought = self.restored - restored
        assert brought <= most and at <= end and (at == end or brought == most)
        if at == end and self.pools.free[group] > end:
            assert self.pools.cached_prefix(prompt, chain)[group] >= min(before, end * PAGE)

    def copy(self) -> None:
        """The copies are made, in order."""
        for group, page, place, to_host in self.pools.take_copies():
            assert 0 <= page < self.pages and 0 <= place < self.places
            if to_host:
                self.hosted[group, place] = self.written[group, page]
                self.stored += 1
            else:
                self.written[group, page] = self.hosted[group, place]
                self.restored += 1
        host = self.pools.host
        assert (host.stored, host.restored) == (self.stored, self.restored)

    def grow(self, which: int, more: int) -> None:
        """A request generates tokens that it has no pages for; its groups are joined in ascending order."""
        if not self.running:
            return
        request = self.running[which % len(self.running)]
        holding, free, tokens = request.holding, self.pools.free, len(request.tokens) + more
        others = [group for group in range(self.groups) if group not in holding.groups]
        if tokens > PER_GROUP * self.groups:
            return
        while len(holding.groups) * PER_GROUP < tokens:
            self.pools.join(holding, others.pop(0))
        lacking = self.pools.lacking(holding, tokens)
        fits = all(free[group] >= pages for group, pages in lacking.items())
        assert self.pools.extend(holding, tokens) == fits
        if fits:
            request.tokens += [8] * more
            assert sum(free) - sum(self.pools.free) == sum(lacking.values())
        else:
            assert self.pools.free == free

    def compute(self, which: int, more: int, told: bool) -> None:
        """A request's next tokens are written, and perhaps published."""
        if not self.running:
            return
        request = self.running[which % len(self.running)]
        done, holding = request.computed, request.holding
        request.computed = min(done + more, len(request.tokens))
        free = self.pools.free
        self.pools.take(holding, request.computed)
        self.copy()
        assert self.pools.free == free, "its pages were set aside"
        assert sum(map(len, holding.pages)) == sum(
            -(-min(PER_GROUP, holding.taken - start) // PAGE) for start in range(0, holding.taken, PER_GROUP)
        )
        for end in range((done // PAGE + 1) * PAGE, min(request.computed, PER_GROUP) + 1, PAGE):
            page = holding.pages[0][end // PAGE - 1]
            self.written[holding.groups[0], page] = (request.salt, tuple(request.tokens[:end]))
        if told:
            self.pools.publish(holding, request.tokens, request.computed)

    def release(self, which: int) -> None:
        """A request goes."""
        if self.running:
            self.pools.release(self.running.pop(which % len(self.running)).holding)

    def lose(self) -> None:
        """The devices lose their contents."""
        while self.running:
            self.release(0)
        self.pools.forget()
        assert self.pools.free == (self.pages,) * self.groups
        assert self.pools.host.used == 0 and not self.pools.take_copies()
        self.written.clear()
        self.hosted.clear()

    def check(self) -> None:
        """Every page and every place is accounted for."""
        held: Counter[tuple[int, int]] = Counter()
        alone: set[tuple[int, int]] = set()
        aside = [0] * self.groups
        for request in self.running:
            rows = zip(request.holding.groups, request.holding.pages, request.holding.owned, strict=True)
            for part, (group, pages, owned) in enumerate(rows):
                assert len(set(pages)) == len(pages)
                aside[group] += owned - len(pages)
                held.update((group, page) for page in pages)
                # what a request may still write is its own
                first = request.computed // PAGE if part == 0 else 0
                mine = {(group, page) for page in pages[first:]}
                assert not mine & alone
                alone |= mine
        assert all(held[page] == 1 for page in alone)
        for group in range(self.groups):
            index = self.pools._indexes[group]
            counts = self.pools._pools[group].holders(range(self.pages)).tolist()
            known = set(index._page.values())
            assert counts == [held[group, page] + (page in known) for page in range(self.pages)]
            idle = index._idle.among(np.arange(self.pages)).tolist()
            assert [page in known and not held[group, page] for page in range(self.pages)] == idle
            assert self.pools.free[group] == sum(not held[group, page] for page in range(self.pages)) - aside[group]
            assert self.pools.free[group] >= 0
            if self.places:
                host = self.pools._hosts[group]
                taken = list(host._place.values())
                assert len(set(taken)) == len(taken)
                assert sorted(taken + host._free) == list(range(self.places)), "no place is lost"


def run(operations: int, seed: int) -> Counter[str]:
    """Random operations on random pools, checked after each one; returns how often each was made."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    model = PagesModel(1, 8, 8)
    for number in range(operations):
        if number % 500 == 0:
            counts += Counter(stored=model.stored, restored=model.restored)
            model = PagesModel(chance.randint(1, 3), chance.randint(1, 24), chance.choice([0, 1, 3, 12, 60]))
        which, more = chance.randrange(99), chance.randint(1, 20)
        kind = chance.choices(["reserve", "grow", "compute", "release", "lose"], [30, 10, 35, 25, 0.2])[0]
        counts[kind] += 1
        match kind:
            case "reserve":
                family, salt = chance.randrange(6), chance.choice(["", "", "", "a"])
                prompt = [family * at % 7 for at in range(chance.randint(1, 24))]
                worth, most = chance.choice([0.1, 9]), chance.choice([0, 2, 9, 9])
                model.reserve(prompt, chance.randint(1, 9), salt, chance.random() < 0.3, worth, most)
            case "grow":
                model.grow(which, more)
            case "compute":
                model.compute(which, more, chance.random() < 0.5)
            case "release":
                model.release(which)
            case "lose":
                model.lose()
        model.check()
    return counts + Counter(stored=model.stored, restored=model.restored)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    stated = parser.parse_args()
    print(dict(run(stated.operations, stated.seed)))
