"""Several clients of a server whose sequences decode in turns that all share: what the decoding of each answer takes.

A prompt is read within one step of the others (continuous batching), who wait for it. How often that falls on a text
depends on who ends when, so the loop is walked from one end of a text to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specbench.acceptance.replay import Floats


@dataclass(slots=True)
class _Client:
    """Asks for one text after the other. When none is left it goes on asking, from its own place in the window on, so
    that the others keep their load; such answers do not count."""

    place: int
    text: int
    counts: bool = True
    left: float = 0.0  # turns until its answer is there; 0 while its prompt is not read
    began_s: float = 0.0


def decoding_seconds(
    windows: Sequence[Sequence[int]], clients: int, turns: Floats, turn_s: Mapping[int, Floats], read_s: Floats
) -> Floats:
    """Seconds from the first token of each text to its last [texts]; a text's mean where it is asked several times.

    In every window of `windows` (places of texts, in their order) so many `clients` ask at once, and go on asking until
    its last text is there. A text takes `turns` [texts] after its first token, each of what a turn takes on average of
    those that run, by how many these are (`turn_s` [sequences: texts], linear between the known). Its prompt adds
    `read_s` [texts] to the turn in which it is read."""
    sizes = list(turn_s)
    spent, asked = np.zeros(len(turns)), np.zeros(len(turns))

    def turn(running: Sequence[_Client]) -> float:
        texts = [client.text for client in running]
        return float(np.interp(len(texts), sizes, [turn_s[size][texts].mean() for size in sizes]))

    for window in windows:
        everyone = [_Client(place, text) for place, text in enumerate(window[:clients])]
        waiting, open_texts = [*window[clients:]], len(window)
        # The first request is read at once, the others come meanwhile; what comes during a turn is read in the next.
        due, coming = everyone[:1], everyone[1:]
        now_s = 0.0
        while open_texts:
            running = [client for client in everyone if client.left]
            reading = due or ([] if running else coming)
            due = coming if due or running else []
            # Until a prompt is to be read, nothing changes before the first of the answers ends.
            whole = 1.0 if reading or due else min(client.left for client in running)
            now_s += whole * turn(running) if running else 0.0
            now_s += sum(float(read_s[client.text]) for client in reading)
            coming = []
            for client in running:
                client.left -= whole
                if client.left >= 0.5:  # expected turns are no whole numbers
                    continue
                client.left = 0.0
                coming.append(client)
                if client.counts:
                    spent[client.text] += now_s - client.began_s
                    asked[client.text] += 1
                    open_texts -= 1
                client.counts = bool(waiting)
                client.text = waiting.pop(0) if waiting else window[client.place % len(window)]
                client.place += 0 if client.counts else clients
            for client in reading:
                client.began_s, client.left = now_s, max(1.0, float(turns[client.text]))
    return spent / np.maximum(asked, 1.0)
