"""From the bytes of tokens to text that is certain: characters and stop strings may both span several tokens."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from gptcli.errors import UsageError
from gptcli.records import Chunk


class TextStream:
    """Releases text as soon as neither its last character nor a stop string can still be open.

    The stop string that is completed first ends the text, wherever the tokens' borders lie; of several completed by
    the same character it is the longest. Bytes that are not UTF-8 become U+FFFD at once, so at most three bytes wait.
    """

    def __init__(self, *, stops: Sequence[str] = (), strip_leading_space: bool = False) -> None:
        if "" in stops:
            raise UsageError("a stop string is empty", hint="give --stop at least one character")
        self.stopped = False  # a stop string was met: what stood before it is released, nothing after it will be
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._strip = strip_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[tuple[int, str]] = []  # decoded, not released: could be the start of a stop string
        self._last = 0  # the token whose bytes came last: it answers for a character that never ends

    def feed(self, index: int, raw: bytes) -> tuple[Chunk, ...]:
        """The text that token `index` made certain; a character belongs to the token that brought its last byte."""
        if self.stopped:
            return ()
        if raw:
            self._last = index
        return self._take(index, self._decoder.decode(raw))

    def finish(self) -> tuple[Chunk, ...]:
        """All that was held back; half a character becomes U+FFFD."""
        if self.stopped:
            return ()
        done = self._take(self._last, self._decoder.decode(b"", final=True))
        return done if self.stopped else done + self._release(sum(len(text) for _, text in self._held))

    def _take(self, index: int, text: str) -> tuple[Chunk, ...]:
        if not text:
            return ()
        if self._strip:
            self._strip, text = False, text.removeprefix(" ")
        self._held.append((index, text))
        held = "".join(text for _, text in self._held)
        met = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if met:
            self.stopped = True
            return self._release(min(met)[1])
        return self._release(len(held) - self._open(held))

    def _open(self, held: str) -> int:
        """Length of the longest end of `held` with which a stop string begins."""
        for length in range(min(len(held), self._longest - 1), 0, -1):
            if any(stop.startswith(held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, n_chars: int) -> tuple[Chunk, ...]:
        chunks: list[Chunk] = []
        while n_chars and self._held:
            index, text = self._held.pop(0)
            if len(text) > n_chars:
                self._held.insert(0, (index, text[n_chars:]))
            chunks.append(Chunk(index=index, text=text[:n_chars]))
            n_chars -= len(chunks[-1].text)
        return tuple(chunk for chunk in chunks if chunk.text)
