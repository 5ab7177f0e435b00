from __future__ import annotations

import re

import pytest

from medxai.export.naming import uid_name
from tests.export import conformance

DOCS = conformance.PAGE.parent


def test_the_tables_are_what_the_objects_hold():
    """Regenerate with ``python -m tests.export.conformance`` after a change of what is written."""
    assert conformance.PAGE.read_text() == conformance.page()


def test_the_statement_lists_every_class_that_is_written():
    written = set(re.findall(r"\((1\.2\.840[.\d]+)\)\. Transfer|\((1\.2\.840[.\d]+)\),", conformance.PAGE.read_text()))
    classes = {uid for pair in written for uid in pair if uid}
    statement = (DOCS / "conformance.md").read_text()
    assert len(classes) >= 10
    for uid in classes:
        assert uid in statement, uid_name(uid)


@pytest.mark.parametrize("name", ["conformance.md", "ihe.md"])
def test_nothing_is_claimed_that_only_a_connectathon_can_show(name):
    text = (DOCS / name).read_text().lower()
    assert "designed to" in text
    assert not re.search(r"\b(certified|compliant|we conform|ihe-conformant)\b", text)
