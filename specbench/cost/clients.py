"""Several clients of a server whose sequences decode in turns that all share: what the decoding of each answer takes.

A prompt is read within one step of the others (continuous batching), who wait for it. How often that falls on a text
depends on who ends when, so the loop is walked from one end of a text to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specbench.acceptance.replay import Floats


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

    def turn(running: Sequence[int]) -> float:
        return float(np.interp(len(running), sizes, [turn_s[size][running].mean() for size in sizes]))

    for window in windows:
        count = min(clients, len(window))
        waiting = [*window[count:]]  # texts that no client has asked for yet
        text = dict(enumerate(window[:count]))  # of each client
        counts = dict.fromkeys(text, True)
        left: dict[int, float] = {}
        began_s: dict[int, float] = {}
        now_s = 0.0
        # The first request is read at once, the others come meanwhile; what comes during a turn is read in the next.
        due, coming, open_texts = [0], list(text)[1:], len(window)
        fills = {client: client for client in text}
        while open_texts:
            running = sorted(left)
            if due or not running:
                reading, due, coming, whole = due or coming, coming if due else [], [], 1.0
            else:
                reading, due, coming = [], coming, []
                whole = 1.0 if due else min(left.values())
            now_s += whole * (turn([text[each] for each in running]) if running else 0.0)
            now_s += sum(float(read_s[text[each]]) for each in reading)
            for client in running:
                left[client] -= whole
                if left[client] < 0.5:  # expected turns are no whole numbers
                    del left[client]
                    if counts[client]:
                        spent[text[client]] += now_s - began_s[client]
                        asked[text[client]] += 1
                        open_texts -= 1
                    counts[client] = bool(waiting)
                    text[client] = waiting.pop(0) if waiting else window[fills[client] % len(window)]
                    fills[client] += 0 if counts[client] else clients
                    coming.append(client)
            for client in reading:
                began_s[client], left[client] = now_s, max(1.0, float(turns[text[client]]))
    return spent / np.maximum(asked, 1.0)
