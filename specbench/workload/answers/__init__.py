"""Answers that are already there: the logs, exports and data sets that hold prompts with what a model wrote.

`AnswerLog` streams them, each with all that was said before it. What a source looks like is known to small readers
(sources.py, vllm_log.py); a row of any other form is refused by the names of its columns.
"""

from __future__ import annotations

from specbench.workload.answers.log import AnswerLog, Survey
from specbench.workload.answers.recorded import Recorded

__all__ = ["AnswerLog", "Recorded", "Survey"]
