"""Counters that a server keeps since its start, from its metrics page in Prometheus text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from specbench.records import LARGEST, MOST_DRAFTED

Samples = Mapping[str, list[tuple[dict[str, str], float]]]


def samples(page: str) -> Samples:
    """Every sample of a metrics page by its full name, with labels and value. Raises ValueError for text that is not
    Prometheus'."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name].append((dict(sample.labels), float(sample.value)))
    except (LookupError, TypeError, AttributeError):  # the parser trips over what it does not expect
        raise ValueError("no page of counters") from None
    return found


def total(page: Samples, name: str) -> int | None:
    """The sum over all engines of a process group; None where the page has no such counter. Raises ValueError for a sum
    that none has."""
    return _whole(sum(value for _, value in page[name])) if name in page else None


def by_position(page: Samples, name: str) -> tuple[int, ...] | None:
    """A counter with a label `position`, from position 0 on, summed over engines. Raises ValueError as above."""
    if name not in page:
        return None
    sums: dict[int, float] = defaultdict(float)
    for labels, value in page[name]:
        position = labels.get("position", "")
        if not position.isdecimal() or len(position) > 9 or int(position) >= MOST_DRAFTED:
            raise ValueError("a position that no draft has")
        sums[int(position)] += value
    return tuple(_whole(sums[position]) for position in range(max(sums) + 1))


def _whole(value: float) -> int:
    if not 0 <= value <= LARGEST:
        raise ValueError("a counter that no server reaches")
    return round(value)
