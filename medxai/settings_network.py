"""Settings of the network side: certificates, the listener, its work items. Part of `medxai.settings.RunSettings`."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from medxai.strict import Strict

#: Application entity title, PS3.5 section 6.2: up to 16 characters of the default repertoire, no backslash.
AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")]


class ClientTls(Strict):
    """How we call others by TLS (DIMSE) or HTTPS.

    Attributes:
        ca: PEM file of the issuers we trust; None: those of the operating system.
        certificate: PEM file of our own certificate with its chain, for nodes that ask for one.
        key: PEM file of its private key.
        host_name: name that the node's certificate must carry, when it is not the address we call.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    host_name: str | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are given together or not at all")
        return self


class ServerTls(Strict):
    """How others call us by TLS (PS3.15 annex B: TLS 1.2 or newer).

    Attributes:
        certificate: PEM file of our certificate with its chain.
        key: PEM file of its private key.
        client_ca: PEM file of the issuers of our callers; with it, a caller without a certificate of theirs is turned
            away before it can say anything.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class WorkItems(Strict):
    """Unified Procedure Steps that tell us what to do (PS3.4 annex CC; PS3.18 chapter 11 for UPS-RS).

    Attributes:
        source: name of the node that holds them, one of `sources`.
        label: only steps with this Worklist Label; empty for all.
        poll_seconds: pause between two looks.
    """

    source: str = Field(min_length=1)
    label: str = Field(default="", max_length=64)
    poll_seconds: float = Field(default=30.0, gt=0)


class Listen(Strict):
    """The listener: who may send, how much, and when a study is complete.

    Attributes:
        aet: our application entity title; calls for another one are rejected.
        port: TCP port; ports below 1024 need rights that the listener should not have.
        host: address to listen on. Only this machine by default: name an interface to open it to the network.
        calling: application entity titles that may call, each as ``AET`` or ``AET@host`` (that title from that
            IP address only).
        quiet_seconds: a study is complete when nothing of it has arrived for so long.
        spool: folder of received objects; ``<output>/.medxai/spool`` by default. It must be on a disk that keeps what
            was synchronised, and belongs to one listener.
        keep_hours: received objects of a study that was analysed are removed so long after the last of them arrived.
        object_bytes: largest object. One object of each open association is held in memory.
        study_bytes: largest study; more is refused and the study put aside.
        free_bytes: space that must stay free on the disk of the spool; below it everything is refused.
        objects_per_second: rate of accepting, over all callers; faster ones wait for their answers.
        associations: open at the same time; more are rejected as transient.
        idle_seconds: an association on which nothing happens for so long is closed.
        tls: certificates; without it the port speaks plain DICOM.
        work_items: Unified Procedure Steps to pull.
    """

    aet: AETitle = "MEDXAI"
    port: int = Field(default=11112, ge=0, le=65535)
    host: str = "127.0.0.1"
    calling: tuple[str, ...] = Field(min_length=1)
    quiet_seconds: float = Field(default=30.0, gt=0)
    spool: Path | None = None
    keep_hours: float = Field(default=24.0, ge=0)
    object_bytes: PositiveInt = 2 << 30
    study_bytes: PositiveInt = 16 << 30
    free_bytes: Annotated[int, Field(ge=0)] = 2 << 30
    objects_per_second: float = Field(default=1000.0, gt=0)
    associations: Annotated[int, Field(ge=1, le=200)] = 10
    idle_seconds: float = Field(default=60.0, gt=0)
    tls: ServerTls | None = None
    work_items: WorkItems | None = None

    @field_validator("calling")
    @classmethod
    def _titles(cls, calling: tuple[str, ...]) -> tuple[str, ...]:
        for entry in calling:
            title, at, address = entry.partition("@")
            if not 0 < len(title.strip()) <= 16:
                raise ValueError(f"{entry!r} is neither AET nor AET@host, with at most 16 characters of AET")
            if at and not _is_address(address):
                raise ValueError(f"{entry!r}: give the host as an IP address; callers are known by no other name")
        return calling

    @property
    def titles(self) -> tuple[str, ...]:
        """The application entity titles of `calling`, without their hosts."""
        return tuple(dict.fromkeys(entry.partition("@")[0].strip() for entry in self.calling))

    def allows(self, title: str, host: str) -> bool:
        """True when `title` may call from the address `host`."""
        for entry in self.calling:
            name, at, address = entry.partition("@")
            if name.strip() == title.strip() and (not at or address == host):
                return True
        return False


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


Retrieve = Literal["move", "get"]
