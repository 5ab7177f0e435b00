"""The conformance statement lists every private code that our reports hold, with its meaning."""

from __future__ import annotations

import re

from medxai.export.brain.report import private_codes
from medxai.export.reporting import MEANINGS
from tests.export.conformance import PAGE

STATEMENT = PAGE.with_name("conformance.md")


def listed() -> dict[str, str]:
    """Meaning by code as the statement has them."""
    section = STATEMENT.read_text().partition("## 6 Codes")[2].partition("## 7")[0]
    return dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE))


def test_the_statement_lists_the_private_codes_and_no_others():
    """Of the reports of studies and of the brain's; a code has one meaning."""
    own = private_codes()
    assert not set(own) & set(MEANINGS)
    assert listed() == {**MEANINGS, **own}


def test_codes_and_meanings_fit_their_attributes():
    """PS3.5 6.2: SH of 16 and LO of 64 characters; two codes never mean the same."""
    everything = {**MEANINGS, **private_codes()}
    assert all(len(code) <= 16 and len(meaning) <= 64 for code, meaning in everything.items())
    assert len(set(everything.values())) == len(everything)


def test_no_written_report_holds_another():
    """The page of attributes is made from reports that were written; those of the brain are looked at beside them."""
    written = set(re.findall(r"\((\w+), 99MEDXAI, \"([^\"]*)\"\)", PAGE.read_text()))
    assert len(written) > 10
    assert written <= set(listed().items())
