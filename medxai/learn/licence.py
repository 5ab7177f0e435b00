"""Licence notes that go with shipped weights."""

from __future__ import annotations

APACHE = """\
Copyright the medxai authors

The weights in this folder are licensed under the Apache License, Version 2.0; you may not use them except
in compliance with the License. The text of the License is in the file LICENSE of the project and at
http://www.apache.org/licenses/LICENSE-2.0. They are provided "as is", without warranties or conditions
of any kind.
"""


def creative_commons(data: str, changes: str) -> str:
    """Return the note for weights under CC BY 4.0 with the attribution that the data's licence asks for.

    Args:
        data: creators, title and source of the data.
        changes: what was made of them.
    """
    return (
        "The weights in this folder are licensed under the Creative Commons Attribution 4.0 International\n"
        "licence (CC BY 4.0): https://creativecommons.org/licenses/by/4.0/. They come without warranties.\n\n"
        f"Attribution: {data}\n\nChanges: {changes}\n"
    )
