"""Findings of a dataset's checks: mistakes of one kind in one file, told in one line."""

from dataclasses import dataclass, field
from functools import partialmethod
from os import PathLike
from typing import Any

from dgnet_det.errors import UserError

NUM_CASES_NAMED = 10  # of one kind, in a report


@dataclass
class Finding:
    """All mistakes of one kind in one file."""

    # "error" where training or evaluation would fail, or tell something untrue, or learn from boxes
    # that are wrong; else "warning".
    severity: str
    kind: str
    message: str  # the file, what is wrong with the first case, and how to mend it; one line
    count: int = 0
    cases: list[str] = field(default_factory=list)  # images, classes or annotations: the first

    def line(self) -> str:
        """The message, with the number of further cases."""
        return self.message + (f" (and {self.count - 1} more)" if self.count > 1 else "")


class Findings:
    """Findings in one file, collected together with those in others."""

    def __init__(self, file: str | PathLike[str] = "", others: "Findings | None" = None) -> None:
        self.file = str(file)
        self._found: dict[tuple[str, str], Finding] = others._found if others else {}

    def of_file(self, file: str) -> "Findings":
        """Findings in another file, which are collected here too."""
        return Findings(file, self)

    def _add(
        self,
        severity: str,
        kind: str,
        problem: Any,
        case: Any = "",
        where: Any = None,
        noun: str = "",
    ) -> None:
        told = str(problem)
        if not isinstance(problem, UserError):
            told = f"{where or self.file}: {f'{noun} {case}: ' if noun else ''}{problem}"
        first = Finding(severity, kind, " ".join(told.split()))
        finding = self._found.setdefault((self.file, kind), first)
        finding.count += 1
        if len(finding.cases) < NUM_CASES_NAMED and str(case):
            finding.cases.append(str(case))

    # Add a case of a kind. Only the first case's problem is kept: what is wrong and how to mend it,
    # or an exception that says this. It starts with the file, or ``where`` if that is another, and
    # with the case, if there is a ``noun`` for it.
    error = partialmethod(_add, "error")
    warning = partialmethod(_add, "warning")

    def of(self, severity: str) -> list[Finding]:
        """Findings of one severity in all files, in the order in which they were found."""
        return [f for f in self._found.values() if f.severity == severity]

    def raise_first_error(self) -> None:
        """Raise the first error, if there is one, as a :class:`UserError`."""
        for finding in self.of("error"):
            raise UserError(finding.line())
