"""What keeps a workload from carrying a verdict, as data with a hint; among it prompts that look drawn at random, since
acceptance on random text says nothing about a user's traffic.

Two language-free signs, both on lower-cased text with white space collapsed:

- *characters*: real text repeats runs of five characters, and neighbours depend on each other. Uniformly random
  characters (ASCII, letters, hex, base64, ideographs) do neither.
- *words*: real text of some length says some word twice. Words or vocabulary tokens drawn at random do not, and
  their runs of five repeat rarely.

Tried on 66,000 passages of 256 to 1,200 characters in 30 languages, code, JSON and tables: 20 were flagged, 14 of
them bare tables of long decimals. Random characters are found in 9 of 10 cases or more from 300 characters on, random
words and tokens in 3 of 4 from 650 on. Short prompts are never flagged: too little evidence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from specbench.records import Finding, Prompt, warned
from specbench.text import count
from specbench.workload.faults import list_names

# How a conversation begins that was written into a cell as JSON, cut short, or as Python prints a list.
_TURNS_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*(["'])(role|from|speaker|content|value)\1\s*:""")
# What the tokenizers of ChatML, Llama, Gemma, Mistral and DeepSeek read as one token of their own.
_SPECIAL = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_ ]{1,40}\|>|<\uff5c[^\uff5c\n]{1,40}\uff5c>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos)>|</s>|\[/?INST\]"
)

FEWEST_PROMPTS = 10
TOLERATED_SHARE = 0.05  # of repeats, and of random-looking prompts


def row_cautions(
    rows: int, left_out: int, prompts: int, unused: Mapping[str, int], sampling: Mapping[str, int]
) -> Iterator[Finding]:
    """Of the `rows` so many cannot be read; `unused` fields would change a prompt or its answer, `sampling` ones are a
    run's own, each with its number of rows."""
    if 2 * left_out > rows:
        yield warned(
            "rows-left-out",
            f"{left_out} of {rows} rows cannot be read and are left out: the {prompts} that are left may say little "
            "about the whole",
            "Look at the reasons: the file may have another shape, or name its column with --column NAME.",
        )
    if unused:
        yield warned(
            "fields-not-used",
            f"rows have fields that may change the prompt or its answer and are not used: {_counted(unused)}",
            "Put into the prompt what belongs to it, or take the fields out if they do not.",
        )
    if sampling:
        yield warned(
            "sampling-not-used",
            f"rows have settings of generation, and a run has its own: {_counted(sampling)}",
            "Give the run those that your traffic has: --temperature, --top-p, --max-new-tokens and so on.",
        )


def prompt_cautions(prompts: Sequence[Prompt], suspects: int, id_clashes: int) -> Iterator[Finding]:
    """`suspects` of the prompts look random, `id_clashes` had to be renamed."""
    total = len(prompts)
    of_all = f"of {total} prompts"
    repeats = total - len({prompt.sha256 for prompt in prompts})
    turns_as_text = sum(_TURNS_AS_TEXT.match(question(prompt)) is not None for prompt in prompts)
    special = sum(any(_SPECIAL.search(message.content) for message in prompt.messages) for prompt in prompts)
    if turns_as_text > 0:
        yield warned(
            "turns-as-text",
            f"{turns_as_text} {of_all} begin like a list of messages, are not JSON, and were read as plain text",
            "Write conversations with json.dumps, and see that no cell was cut short.",
        )
    if special > 0:
        yield warned(
            "special-tokens",
            f"{special} {of_all} spell what many tokenizers read as a special token, such as <|im_start|>: text of a "
            "user then opens a turn, or ends one",
            "They are encoded as transformers does it. Take them out unless the traffic has them.",
        )
    if total < FEWEST_PROMPTS:
        yield warned(
            "few-prompts",
            f"the workload has {count(total, 'prompt')}, too few to judge how prompts differ",
            f"Add prompts: {FEWEST_PROMPTS} at the very least, 30 or more for a narrow interval.",
        )
    if repeats > TOLERATED_SHARE * total:
        yield warned(
            "repeated-prompts",
            f"{repeats} {of_all} repeat another one exactly; repeats warm the prompt cache and count one prompt's "
            "acceptance several times",
            "Remove the repeats, unless the traffic repeats itself like this.",
        )
    if suspects > TOLERATED_SHARE * total:
        yield warned(
            "random-prompts",
            f"{suspects} {of_all} look like random characters or tokens; acceptance on them says nothing about real "
            "text",
            "Measure on prompts from the real traffic.",
        )
    if id_clashes > 0:
        yield warned(
            "duplicate-ids",
            f"{id_clashes} {of_all} had the id of another prompt and were renamed with #2, #3, ...",
            "Give each prompt an id of its own.",
        )


def question(prompt: Prompt) -> str:
    """What the user asked last; an agent's conversation may end with the answer of a tool."""
    return next((m.content for m in reversed(prompt.messages) if m.role == "user"), prompt.messages[-1].content)


def _counted(fields: Mapping[str, int]) -> str:
    """`images (3 rows), suffix (1 row)`; what may be text of a prompt is not shown."""
    hidden = [name for name in fields if list_names([name]) != name]
    parts = [f"{name} ({count(rows, 'row')})" for name, rows in fields.items() if name not in hidden]
    return ", ".join([*parts, *([list_names(hidden)] if hidden else [])])


WINDOW = 800  # characters looked at: enough to tell, and the thresholds below depend on it
_MIN_CHARACTERS = 256
_MIN_CHARACTERS_OF_WORDS = 500
_MIN_WORDS = 40


def looks_random(text: str) -> bool:
    """True for random characters from 256 characters on, and for random words or tokens from 500 on."""
    # Twice the window leaves enough after white space is collapsed, without lower-casing a whole book.
    window = " ".join(text[: 2 * WINDOW].lower().split())[:WINDOW]
    words = window.split()
    if len(window) < _MIN_CHARACTERS:
        return False
    fresh = len(set(words)) / len(words)
    if len(words) >= _MIN_WORDS and fresh < 0.85:  # cheap, and settles most prose
        return False
    repeated = _repeated_runs(window)
    if repeated <= 0.01 and _neighbour_dependence(window) < 3.0:
        return True
    return len(window) >= _MIN_CHARACTERS_OF_WORDS and len(words) >= _MIN_WORDS and fresh >= 0.98 and repeated < 0.03


def _repeated_runs(text: str) -> float:
    """Share of the runs of five characters that occurred earlier in the text."""
    runs = len(text) - 4
    return 1 - len({text[start : start + 5] for start in range(runs)}) / runs


def _neighbour_dependence(text: str) -> float:
    """How many standard deviations more often pairs of neighbours repeat than shuffled characters would.

    The index of coincidence (Friedman 1922) of pairs, against the square of that of single characters.
    """
    n = len(text)
    singles = sum(count * (count - 1) for count in Counter(text).values()) / (n * (n - 1))
    repeats = sum(count * (count - 1) for count in Counter(pairwise(text)).values()) / 2
    expected = (n - 1) * (n - 2) / 2 * singles**2
    return (repeats - expected) / math.sqrt(expected + 1)
