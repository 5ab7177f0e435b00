"""Results of a study on their way out: what has to arrive where, and sending it now."""

from __future__ import annotations

from medxai.records.outbox import Item
from medxai.session import Session
from medxai.study import Manifest, SourceFiles


def record_export(session: Session, source: SourceFiles, job_id: int, manifest: Manifest) -> None:
    """Mark a job as exported and put its objects into the outbox, in one transaction."""
    folder = session.folder(source.key)
    session.outbox.exported(job_id, str(folder), outbox_items(session, source, manifest))


def outbox_items(session: Session, source: SourceFiles, manifest: Manifest) -> list[Item]:
    """What of a study has to arrive where."""
    from medxai.export.sets import objects_for
    from medxai.ingest.dicom_file import read_header

    if not session.settings.destinations:
        return []
    uids = {
        item.path: str(read_header(session.folder(source.key) / item.path).SOPInstanceUID)
        for item in manifest.outputs
        if item.path.endswith(".dcm")
    }
    return [
        Item(uids[item.path], f"{source.key}/{item.path}", item.sha256, destination.name)
        for destination in session.settings.destinations
        for item in objects_for(destination.output_set, manifest.outputs)
        if item.path in uids
    ]


def deliver(session: Session, source: SourceFiles, job_id: int, manifest: Manifest) -> int:
    """Send what of a study is in the outbox, due or not; returns the number of objects sent now.

    Raises:
        DeliveryError: a destination refused or did not answer.
    """
    from medxai.transport.deliver import deliver as send_due

    settings = session.settings
    session.outbox.announce(job_id, outbox_items(session, source, manifest))
    outcomes = [
        send_due(session.outbox, destination, settings.output, job_id=job_id) for destination in settings.destinations
    ]
    for outcome in outcomes:
        for _, error in outcome.failures:
            raise error.about(source.key)
    return sum(outcome.sent for outcome in outcomes)
