"""Which of the written objects a destination gets: output sets, see configs/sets."""

from __future__ import annotations

from collections.abc import Iterable

from medxai.settings import ExportOptions
from medxai.study import OutputFile


def objects_for(output_set: str | None, outputs: Iterable[OutputFile]) -> tuple[OutputFile, ...]:
    """Return the outputs whose roles a set lists, in their order; all of them for no set.

    Args:
        output_set: name of a shipped set or path of a YAML file, as in `Destination.output_set`.
        outputs: of one study.

    Raises:
        ValueError: there is no such set; `Destination` has refused it before.
    """
    if output_set is None:
        return tuple(outputs)
    wanted = frozenset(ExportOptions(output_set=output_set).formats)
    return tuple(output for output in outputs if output.role in wanted)
