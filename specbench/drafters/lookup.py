"""Look-up: what followed the last time these words were written is proposed again. No model, no weights, and no library
that would have to be loaded for them.

Of n-grams the longest suffix of the sequence that occurred before decides, its earliest occurrence is copied, as
transformers (`prompt_lookup_num_tokens`) and vLLM (`ngram`) do it. `suffix` is after SuffixDecoding (Oliaro et al.
2024, arXiv 2411.04975): the longest suffix that stood before, in the text so far or in earlier answers, is found, and
its likeliest continuation followed for as many tokens as were matched, as long as the share of occurrences that went
on so stays above `LEAST`. A suffix automaton finds it in one step for each new token, whatever its length (Blumer et
al. 1985).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from specbench.acceptance.scores import until_end
from specbench.drafters.spec import NgramSpec


class NgramLookUp:
    """Keeps the earliest place of every n-gram of the sequence. The sequence only grows by emitted tokens, so nothing
    ever needs to be forgotten within a text."""

    least = 1

    def __init__(self, spec: NgramSpec, *, eos: Collection[int]) -> None:
        self._spec = spec
        self._eos = frozenset(eos)

    def begin(self, prompt: Sequence[int]) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that first followed it
        self._indexed = 0
        self._index(prompt)

    def find(self, x: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens to follow `x`, none after an end of sequence; [] where nothing is found."""
        self._index(x)
        k = min(k, self._spec.longest or k)
        for n in range(min(self._spec.n, len(x) - 1), self._spec.shortest - 1, -1):
            at = self._after.get(tuple(x[-n:]))
            if at is not None:
                return until_end(x[at : at + k], self._eos)
        return []

    def _index(self, x: Sequence[int]) -> None:
        """Enter every n-gram that something follows: those that end before the last token."""
        for follower in range(max(1, self._indexed), len(x)):
            for n in range(self._spec.shortest, min(self._spec.n, follower) + 1):
                self._after.setdefault(tuple(x[follower - n : follower]), follower)
        self._indexed = len(x)


class RecentLookUp:
    """As llama.cpp's `ngram-simple` (common/ngram-map.cpp): exactly the last n tokens, their latest place before, and
    what followed it up to the last token; nothing where that, or gamma, is less than n tokens."""

    def __init__(self, n: int, *, eos: Collection[int]) -> None:
        self.least = self._n = n
        self._eos = frozenset(eos)

    def begin(self, prompt: Sequence[int]) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that last followed it
        self._indexed = 0

    def find(self, x: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens to follow `x`; [] where nothing is found."""
        n, last = self._n, len(x) - 1
        for follower in range(max(n + 1, self._indexed), last):  # a match at the very first token is not looked at
            self._after[tuple(x[follower - n : follower])] = follower
        self._indexed = max(self._indexed, last)
        at = self._after.get(tuple(x[-n:]), last)
        return until_end(x[at : min(at + k, last)], self._eos) if min(k, last - at) >= n else []


# The least estimated probability of all of a proposal.
LEAST = 0.1

# Stands between the answers of a corpus; no token has it.
_BREAK = -1


class Automaton:
    """Of every string in a sequence: how often it stands there. A state is all strings that end at the same places;
    `counts` are how many places, `lengths` the longest string of each."""

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link, self.lengths, self.counts = [-1], [0], [0]
        self.last = 0

    def append(self, token: int) -> None:
        """Go on by one token; the text so far is the longest string of `last`."""
        new = self._state(self.lengths[self.last] + 1, {})
        at = self.last
        while at >= 0 and token not in self.next[at]:
            self.next[at][token] = new
            at = self.link[at]
        if at < 0:
            self.link[new] = 0
        else:
            self.link[new] = self._split(at, token)
        self.last = at = new
        while at > 0:  # every suffix stands here once more
            self.counts[at] += 1
            at = self.link[at]

    def _split(self, at: int, token: int) -> int:
        """The state of the longest string of `at` and this token after it."""
        long = self.next[at][token]
        if self.lengths[long] == self.lengths[at] + 1:
            return long
        short = self._state(self.lengths[at] + 1, dict(self.next[long]))
        self.link[short], self.counts[short] = self.link[long], self.counts[long]
        self.link[long] = short
        while at >= 0 and self.next[at].get(token) == long:
            self.next[at][token] = short
            at = self.link[at]
        return short

    def _state(self, length: int, following: dict[int, int]) -> int:
        self.next.append(following)
        self.link.append(0)
        self.lengths.append(length)
        self.counts.append(0)
        return len(self.next) - 1

    def follow(self, state: int, k: int) -> list[int]:
        """At most `k` tokens after the strings of a state: the most frequent each time, the least id of several."""
        found: list[int] = []
        here, places = state, 0
        while len(found) < k:
            following = {token: self.counts[to] for token, to in self.next[here].items() if token != _BREAK}
            places = places or sum(following.values())
            token = min(following, key=lambda one: (-following[one], one), default=None)
            if token is None or following[token] < LEAST * places:
                break
            found.append(token)
            here = self.next[here][token]
        return found


class Corpus:
    """Earlier answers, as token ids, to be looked up in."""

    def __init__(self, answers: Iterable[Sequence[int]]) -> None:
        self.automaton = Automaton()
        for answer in answers:
            for token in (*answer, _BREAK):
                self.automaton.append(token)

    def matched(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest suffix that stands in the corpus, as a state and a length, when `token` follows one that does."""
        found = self.automaton
        while state > 0 and token not in found.next[state]:
            state = found.link[state]
            length = found.lengths[state]
        if token in found.next[state]:
            return found.next[state][token], length + 1
        return 0, 0


class SuffixLookUp:
    """Looks up in the text so far, and in a corpus where that has a longer match."""

    least = 1

    def __init__(self, corpus: Corpus | None = None, *, eos: Collection[int]) -> None:
        self._corpus, self._eos = corpus, frozenset(eos)

    def begin(self, prompt: Sequence[int]) -> None:
        self._text = Automaton()
        self._seen, self._state, self._length = 0, 0, 0
        self._read(prompt)

    def find(self, x: Sequence[int], k: int) -> list[int]:
        """At most `k` tokens to follow `x`, none after an end of sequence; [] where nothing is found."""
        self._read(x)
        text = self._text
        where, state = text, text.link[text.last]  # the longest suffix that stands elsewhere too
        length = text.lengths[state] if state > 0 else 0
        if self._corpus is not None and self._length > length:
            where, state, length = self._corpus.automaton, self._state, self._length
        if not length:
            return []
        return until_end(where.follow(state, min(k, length)), self._eos)

    def _read(self, x: Sequence[int]) -> None:
        for token in x[self._seen :]:
            self._text.append(token)
            if self._corpus is not None:
                self._state, self._length = self._corpus.matched(self._state, self._length, token)
        self._seen = len(x)
