"""What the commands print: pages of terminal.j2, and a comparison of two runs, which is a Markdown page as well."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import RenderableType

from specbench.report.dialect import template
from specbench.report.layout import laid_out, page

if TYPE_CHECKING:
    from specbench.analysis.checked import Checked
    from specbench.analysis.compare import Comparison
    from specbench.analysis.contract import Summary
    from specbench.analysis.plan import Plan
    from specbench.analysis.probed import ProbeSummary
    from specbench.analysis.recorded import RecordedAcceptance
    from specbench.analysis.replayed import Replayed
    from specbench.analysis.summarise import ListedRun
    from specbench.verify import Examination
    from specbench.workload import Workload, WorkloadProfile


def sweep_tables(summary: Summary) -> list[RenderableType]:
    """What `measure` and `sweep` print: the verdict, then the evidence by gamma, category and load, then warnings."""
    from specbench.analysis.loads import best_by_concurrency
    from specbench.report import columns

    return page(
        "sweep",
        s=summary,
        gammas=partial(columns.gamma_columns, policy=summary.policy),
        categories=partial(columns.category_columns, policy=summary.policy, batch=summary.batch_size),
        loads=columns.load_shown(summary),
        load_columns=partial(columns.load_columns, summary),
        concurrent=lambda draft: best_by_concurrency(summary.loads, draft.draft, summary.policy),
    )


def runs_table(runs: Sequence[ListedRun]) -> list[RenderableType]:
    return page("runs", found=runs)


def replay_tables(found: Replayed) -> list[RenderableType]:
    """What `replay` prints: acceptance by gamma for each draft, and tokens per round by category."""
    return page("replayed", found=found)


def recorded_tables(found: RecordedAcceptance) -> list[RenderableType]:
    """Acceptance by gamma for each draft, then by category, length of the prompt and place in the answer."""
    return page("recorded", found=found)


def probe_tables(found: ProbeSummary) -> list[RenderableType]:
    """What `probe` prints: for each model a step, several tokens at once, draft phases and prefill."""
    return page("probed", found=found)


def workload_tables(workload: Workload, profile: WorkloadProfile) -> list[RenderableType]:
    """What `workload` prints: counts and lengths by category, then what was left out and what to distrust."""
    return page("workload", workload=workload, profile=profile)


def check_tables(found: Checked) -> list[RenderableType]:
    return page("checked", found=found)


def doctor_tables(found: Examination) -> list[RenderableType]:
    return page("examined", found=found)


def plan_tables(plan: Plan) -> list[RenderableType]:
    """What `plan` prints: what is wanted and what it takes, other true speedups, categories, assumptions."""
    return page("planned", plan=plan)


def comparison_tables(found: Comparison) -> list[RenderableType]:
    return [laid_out(lambda b, d: template("compare.j2", d).render(b=b, **_compared(found)))]


def comparison_markdown(found: Comparison) -> str:
    from specbench.report.dialect import UNLINKED
    from specbench.report.page import markdown

    return markdown("compare.j2", _compared(found), UNLINKED)


def _compared(found: Comparison) -> dict[str, object]:
    from specbench.decision.interval import EQUIVALENT

    return {"c": found, "equivalent": EQUIVALENT}
