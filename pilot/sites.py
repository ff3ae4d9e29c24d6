"""What a site file may say: closed, typed, every key with its unit and meaning."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Site(BaseModel):
    """A machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="what `--site` takes; the file's name")
    description: str = Field(description="one line for a person")
    documentation: str = Field(description="URL of the site's own documentation")
    contact: str = Field(description="who answers for this file")
    launcher: tuple[str, ...] = Field(
        description="command that starts one MPI program; {ranks} stands for the number of ranks", min_length=1
    )
    slots: int | None = Field(default=None, ge=1, description="worker slots per pilot; absent: one per core")
    cores_per_slot: int = Field(default=1, ge=1, description="CPU cores of each slot")
