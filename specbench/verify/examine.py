"""Every check in order. What a broken part makes meaningless is not checked, so that the cause is named and not all
that follows from it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.backends.local.drafting import Draft
from specbench.errors import SpecbenchError
from specbench.records import Finding
from specbench.verify import heads, language, rewinding, rounds, sampled, template
from specbench.verify.findings import any_broken, noticed
from specbench.verify.setup import Setup

Say = Callable[[str], None]


@dataclass(frozen=True)
class Patient:
    """The beds of one examination. `own` is greedy in the precision asked for; `exact` greedy in float32, None where
    that is too much for the machine, and `own` itself if that is float32; `warm` has the sampling asked for, None if
    that is greedy. `samples` are the words of the prompts as token ids, without a template."""

    own: Setup
    exact: Setup | None
    warm: Setup | None
    samples: list[list[int]]

    @property
    def best(self) -> Setup:
        return self.exact or self.own


def examine(patient: Patient, say: Say = lambda _: None) -> list[Finding]:
    """All behaviour of target and drafts; the machine and the loading are examined elsewhere."""
    found: list[Finding] = []
    say("Checking the target")
    found += _checked("finite-logits", None, lambda: language.finite_logits(patient.own))
    if any_broken(found):
        return [*found, _not_checked("rounds", "the logits are no numbers")]
    found += _checked(template.CODE, None, lambda: template.chat_template(patient.best))
    found += _checked("target-cache", None, lambda: rewinding.target_cache(patient.best))
    if any_broken(found, "target-cache"):
        return [*found, _not_checked("rounds", "the target's cache is broken, and no round can be right")]
    found += _checked("ends-at-once", None, lambda: template.ends_at_once(patient.own))
    found += _checked("self-draft", None, lambda: rounds.self_draft(patient.best))
    if patient.exact is None:
        hint = "Run the doctor on a machine with more memory, or with --dtype float32 on a device that is fast at it."
        found.append(
            _not_checked("exactness", f"too large for float32 here, {patient.own.dtype} is judged loosely", hint)
        )
    for index in range(len(patient.own.drafts)):
        say(f"Checking {patient.own.drafts[index].spec.text}")
        found += _draft(patient, index)
    found += _sampling(patient, say)
    return found


def _draft(patient: Patient, index: int) -> Iterator[Finding]:
    own, best = patient.own, patient.best
    draft = best.drafts[index]
    name = draft.spec.text
    checks: list[tuple[str, Callable[[], Finding | None]]] = [
        ("draft-marks", lambda: template.draft_marks(best, draft)),
        ("vocabulary-meaning", lambda: language.vocabulary_meaning(best, draft, patient.samples)),
        ("draft-cache", lambda: rewinding.draft_cache(best, draft)),
        ("draft-history", lambda: rewinding.draft_history(best, draft)),
        ("head-agreement", lambda: heads.head_agreement(best, draft)),
        ("head-depth", lambda: heads.head_depth(best, draft)),
        ("head-config", lambda: heads.head_config(best, draft)),
        ("nothing-accepted", lambda: rounds.nothing_accepted(best, draft)),
        ("survival-cliff", lambda: rounds.survival_cliff(best, draft)),
        ("loop-replay", lambda: rounds.loop_and_replay(best, draft)),
        ("same-text", lambda: rounds.same_text(best, draft)),
    ]
    if own is not best:
        checks.append(("same-text", lambda: rounds.same_text(own, own.drafts[index])))
    for code, check in checks:
        found = _checked(code, name, check)
        yield from found
        if any(finding.values.get("failed") for finding in found):
            yield noticed("rounds", "not checked", f"the draft's other checks would fail as {code} did", draft=name)
            return


def _sampling(patient: Patient, say: Say) -> Iterator[Finding]:
    warm = patient.warm
    if warm is None:
        yield _not_checked("sampling", "the temperature is 0; add --temperature to check how drafts are drawn")
        return
    say("Drawing drafts")
    yield from _checked("accept-rule", None, lambda: sampled.accept_rule(warm))
    for draft in warm.drafts:
        yield from _drawn(warm, draft)


def _drawn(warm: Setup, draft: Draft) -> Iterator[Finding]:
    yield from _checked("draft-sampling", draft.spec.text, lambda: sampled.draws_follow_q(warm, draft))
    yield from _checked("draft-temperature", draft.spec.text, lambda: sampled.q_of_these_settings(warm, draft))


def _checked(code: str, draft: str | None, check: Callable[[], Finding | None]) -> Sequence[Finding]:
    """A check that cannot even be carried out has found something: a part that fails."""
    try:
        found = check()
    except SpecbenchError as error:
        return [noticed(code, "broken", error.what, error.hint, draft)]
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        # The type and place of a failure, never its message: messages may quote prompts.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        hint = "A part fails where a sound one would not: SPECBENCH_DEBUG=1 with `specbench measure` shows where."
        return [noticed(code, "broken", f"the check failed: {place}", hint, draft, failed=True)]
    return [] if found is None else [found]


def _not_checked(code: str, why: str, hint: str | None = None) -> Finding:
    return noticed(code, "not checked", why, hint)
