"""Base of everything that is read from files of settings and metadata."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Fields that cannot be changed; a name that is no field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
