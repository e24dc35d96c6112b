"""Whether an answer can be what it says: a run folder has to be read again, and no number in a report may be absurd."""

from __future__ import annotations

from specbench.backends.server.adapter import Completion
from specbench.backends.server.failures import AnswerError, RefusedError
from specbench.records import Arm, Times, Trial
from specbench.store import check_trial


def require_plausible(answer: Completion, max_tokens: int) -> None:
    """Raises AnswerError for numbers that no answer to a request for at most `max_tokens` has, or that no run folder is
    read with; RefusedError for one whose times mean nothing."""
    if not answer.prompt_tokens:
        raise AnswerError("no usage.prompt_tokens" if answer.prompt_tokens is None else "usage.prompt_tokens is 0")
    if answer.output_tokens > max_tokens:
        raise AnswerError(f"usage.completion_tokens is more than the {max_tokens} that were asked for")
    if answer.in_one_piece or answer.at_once:
        raise RefusedError("its answer comes in one piece, so that nobody knows when which token was written")
    try:
        check_trial(_as_trial(answer))
    except ValueError as error:
        raise AnswerError(str(error)) from None


def _as_trial(answer: Completion) -> Trial:
    """What would be stored of it, as far as the server decides that."""
    return Trial(
        prompt_id="",
        prompt_sha256="",
        category=None,
        arm=Arm("baseline"),
        repeat=0,
        prompt_tokens=answer.prompt_tokens or 0,
        output_tokens=answer.output_tokens,
        output_sha256="",
        finish=answer.finish,
        drafted=answer.drafted,
        accepted=answer.accepted,
        times=Times(answer.first_s, None, None, None, None, answer.last_s),
        told=answer.told,
    )
