"""The section of a measurement plan that says how many prompts and how long, in sentences and rows."""

from __future__ import annotations

from collections.abc import Iterator

from specbench import text
from specbench.analysis.plan.contract import Amounts, Need, Plan, Truth, minutes_for
from specbench.analysis.plan.planned import OWN_SPREAD
from specbench.analysis.plan.stops import exactly
from specbench.decision.interval import MIN_PROMPTS
from specbench.decision.plan import MAX_PROMPTS
from specbench.report.dialect import MARKDOWN, sentence_of

Rows = tuple[tuple[str, ...], ...]


def spread(plan: Plan) -> Iterator[str]:
    """What the numbers rest on."""
    value, source = f"{plan.spread.value:.3f}", "assumed"
    if plan.spread.low is not None and plan.spread.high is not None:
        value += f" [{plan.spread.low:.3f}, {plan.spread.high:.3f}]"
        source = f"measured over {text.count(plan.pilot_prompts or 0, 'prompt')}"
    words = f"Prompts differ in what they gain, by a spread of {value} ({source})."
    if plan.noise_spread is not None:
        words += f" The target alone has one of {plan.noise_spread:.3f} against itself (measured)."
    yield words
    if plan.speedup is not None and plan.speedup_low is not None:
        bounds = text.interval(plan.speedup_low, plan.speedup_high)
        yield (
            f"The pilot's speedup with {text.code(plan.draft)} is {text.speedup(plan.speedup)} {bounds} (measured)."
            + (" Of its drafts that is the one whose prompts differ most." if plan.drafts > 1 else "")
        )
    elif plan.speedup is not None:
        yield f"The speedup is taken to be {text.speedup(plan.speedup)} (assumed)."


def goals(plan: Plan) -> Rows:
    """(what for, prompts, minutes): the interval, the verdict, every category."""
    wanted = f"an interval within {exactly(plan.half_width)} to either side"
    rows = [(wanted, plan.width)]
    if plan.verdict is not None:
        call = plan.verdict.verdict or "a verdict"
        rows.append((f"{call}, if the truth is {text.speedup(plan.verdict.speedup)}", plan.verdict.need))
    if plan.every_category is not None:
        rows.append((f"{wanted} in every category", plan.every_category))
    return tuple((name, *cells(need)) for name, need in rows)


def cells(need: Need) -> tuple[str, str]:
    """Prompts and minutes, as the tables of the terminal have them."""
    return sentence_of("prompts_needed", MARKDOWN, need), sentence_of("minutes_needed", MARKDOWN, need)


def about(minutes: float | None) -> str:
    """`about 54 minutes (planned)`; empty where no time is known."""
    return "" if minutes is None else f"about {sentence_of('whole', MARKDOWN, minutes)} minutes (planned)"


def amount(plan: Plan, found: Amounts, each: int) -> Iterator[str]:
    """How many to collect, and why so many. `each` is the requests of a batch."""
    if found.planned is None or found.prompts is None:
        yield f"**No number of prompts up to {MAX_PROMPTS:,} is enough: there is nothing to collect.** See section 7."
        return
    needs = [plan.width, *([plan.verdict.need] if plan.verdict else [])]
    of = "The larger of the first two rows is" if len(needs) > 1 else "The first row asks for"
    rounded = found.prompts - found.planned - found.added
    more = [f"{rounded:,} from rounding up in every category"] if rounded else []
    more += [f"{found.added:,} so that no category has fewer than {MIN_PROMPTS}"] if found.added else []
    plus = f", and {text.join(more)} come on top" if more else ""
    time = f"They take {about(found.minutes)}." if found.minutes else "How long they take is not known without a pilot."
    yield f"**Collect {text.count(found.prompts * each, 'request')} (planned).** {of} {found.planned:,}{plus}. {time}"
    if each > 1:
        yield f"A prompt in these tables is a batch of {each} requests, all of one category."
    known = {need.prompts for need in needs if need.prompts is not None}
    if len(known) > 1:
        fewer = "interval" if plan.width.prompts == min(known) else "verdict"
        yield f"If that is too dear, {min(known):,} prompts give the {fewer} alone (planned)."
    if plan.spread.low is not None:
        high = [need.prompts_high for need in needs if need.prompts is not None]
        most = "no affordable number" if None in high else f"{max(n or 0 for n in high):,} prompts"
        yield f"If a second sweep would be dear, plan for the upper end: {most} (planned)."
    if plan.verdict is None:
        yield "No speedup is measured or assumed, so what a verdict takes is in the next table alone."


def category_table(plan: Plan, found: Amounts) -> tuple[tuple[str, ...], Rows]:
    """Header and rows with the sum last; none where no category is known."""
    rows = found.portions
    if not rows:
        return (), ()
    needs = [None if row.plan is None else cells(row.plan.width) for row in rows]
    sides = [(text.UNKNOWN, text.UNKNOWN) if need is None else need for need in needs]
    own = f"for an interval of its own within {exactly(plan.half_width)}"
    return text.table(
        [
            ("category", [*(text.escape(row.category) for row in rows), "**all**"]),
            ("share", [*(text.percent(row.share) for row in rows), "100%"]),
            ("collect", [text.whole(n) for n in (*(row.prompts for row in rows), found.prompts)]),
            (own, [*(prompts for prompts, _ in sides), text.UNKNOWN]),
            ("minutes", [*(minutes for _, minutes in sides), text.UNKNOWN]),
            (
                "for a verdict of its own",
                [*(_own(row.plan.verdict if row.plan else None) for row in rows), text.UNKNOWN],
            ),
        ]
    )


def _own(truth: Truth | None) -> str:
    return text.UNKNOWN if truth is None else f"{cells(truth.need)[0]} at {text.speedup(truth.speedup)}"


def by_category(plan: Plan, found: Amounts, *, mixed: bool) -> Iterator[str]:
    """What the table's numbers mean, and what the least for every category costs."""
    if not found.portions:
        yield (
            "No category is known yet. Step 2 of section 4 finds their shares. Collect that share of the number above "
            f"from each, rounded up, and at least {MIN_PROMPTS}: fewer give no interval. Five categories so take at "
            f"least {5 * MIN_PROMPTS} prompts (planned)."
        )
        return
    source = "the mix of the policy (assumed)" if mixed else "those of the pilot's prompts"
    yield (
        f"The shares are {source}. Where step 2 of section 4 finds others, take those: that share of the number above, "
        f"rounded up, and at least {MIN_PROMPTS}."
    )
    least = len(found.portions) * MIN_PROMPTS
    took = about(minutes_for(plan, least))
    words = (
        f"Fewer than {MIN_PROMPTS} give a category no interval and no verdict. For all of these that makes {least:,}"
    )
    words += f" at least, {took}." if took else " at least (planned)."
    if found.prompts is not None and found.added:
        extra = about(_between(plan, found.prompts - found.added, found.prompts))
        words += f" Here {found.added:,} are collected for that alone" + (f", {extra}." if extra else ".")
    yield words
    if plan.every_category is not None:
        yield (
            "What is collected is for one verdict on all requests together. To decide each category by itself, collect "
            "as many as the columns behind say. Those for a verdict hold if the speedup that the pilot measured in the "
            "category is the true one."
        )
    if any(row.plan is not None and row.plan.shared_spread for row in found.portions):
        yield (
            f"Where the pilot has fewer than {OWN_SPREAD} prompts of a category, its spread is taken to be that within "
            "all categories together (assumed)."
        )


def _between(plan: Plan, fewer: int, more: int) -> float | None:
    ends = minutes_for(plan, fewer), minutes_for(plan, more)
    return None if ends[0] is None or ends[1] is None else ends[1] - ends[0]
