"""Licence notes that go with shipped weights."""

from __future__ import annotations

APACHE = """\
Copyright the medxai authors

The weights in this folder are licensed under the Apache License, Version 2.0; you may not use them except
in compliance with the License. The text of the License is in the file LICENSE of the project and at
http://www.apache.org/licenses/LICENSE-2.0. They are provided "as is", without warranties or conditions
of any kind.
"""


def creative_commons(data: str, changes: str, *, non_commercial: bool = False) -> str:
    """Return the note for weights under CC BY 4.0 with the attribution that the data's licence asks for.

    Args:
        data: creators, title and source of the data.
        changes: what was made of them.
        non_commercial: CC BY-NC 4.0 instead, because of data that may not be used commercially.
    """
    kind, name = ("by-nc", "Attribution-NonCommercial") if non_commercial else ("by", "Attribution")
    return (
        f"The weights in this folder are licensed under the Creative Commons {name} 4.0 International\n"
        f"licence (CC {kind.upper()} 4.0): https://creativecommons.org/licenses/{kind}/4.0/. They come without "
        f"warranties.\n\nAttribution: {data}\n\nChanges: {changes}\n"
    )
