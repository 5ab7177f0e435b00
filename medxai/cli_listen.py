"""``medxai listen``, ``pull``, ``outbox`` and ``received``: studies in from the network, results out to it."""

from __future__ import annotations

import signal
import sys
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medxai.errors import MedxaiError, SettingsError

if TYPE_CHECKING:
    from medxai.listener import Listener
    from medxai.session import Session
    from medxai.settings import Destination, RunSettings
    from medxai.transport.spool import Spool

outbox_app = typer.Typer(
    help="Look at results on their way to a destination, and send them again.", no_args_is_help=True
)

_EXAMPLE = """
\b
CONFIG is the YAML of a batch with a section listen:
  output: /data/medxai
  bundle: chest_ct
  listen:
    aet: MEDXAI                    # our title
    port: 11112
    host: 127.0.0.1                # name an interface to open it
    calling: [CT1, PACS@10.0.0.5]  # all others are rejected
    quiet_seconds: 30              # then a study is complete
    object_bytes: 2147483648
    study_bytes: 17179869184
    free_bytes: 2147483648         # stay free on the disk
    objects_per_second: 1000
    associations: 10
    tls: {certificate: me.pem, key: me.key, client_ca: callers.pem}
  destinations:                    # each object once
    - name: pacs
      kind: dicomweb
      url: https://pacs.hospital/dicom-web
      token_env: PACS_TOKEN        # environment variable
      tls: {ca: ca.pem}
\b
docs/transport.md says how it works and what to do when it does not.
"""


def _settings(config: Path) -> RunSettings:
    from medxai.settings import load_settings

    settings = load_settings(config)
    if settings.listen is None:
        msg = "has no section listen; see `medxai listen --help`"
        raise SettingsError(msg, study=str(config))
    return settings


def _open(config: Path) -> tuple[Session, Spool]:
    from medxai.listener import open_spool
    from medxai.session import open_session

    session = open_session(_settings(config))
    return session, open_spool(session)


def listen(
    config: Annotated[Path, typer.Argument(help="YAML file of settings with a section listen.")],
    check: Annotated[bool, typer.Option("--check", help="Call every destination and source once, then exit.")] = False,
) -> None:
    """Receive studies by C-STORE, explain each when it is complete, and return the results to the destinations.

    Stops in order on SIGTERM and SIGINT. May be killed at any time: an object is acknowledged once it is on the disk,
    and a result is sent once, however often the process or the archive was down in between. `medxai -v` says what is
    done, by pseudonym.
    """
    if check:
        _check(_settings(config))
        return
    from medxai.listener import Listener

    session, spool = _open(config)
    with spool.exclusive() as alone:
        if not alone:
            msg = f"another listener works on the spool {spool.root}; stop it, or give this one its own"
            raise MedxaiError(msg)
        listener = Listener(session, spool)
        listener.start()
        _until_signal(listener, session)


listen.__doc__ = f"{cleandoc(listen.__doc__ or '')}\n{_EXAMPLE}"


def _until_signal(listener: Listener, session: Session) -> None:
    def stop(_number: int, _frame: Any) -> None:
        listener.request_stop()

    settings = session.settings.listen
    host, aet = (settings.host, settings.aet) if settings is not None else ("", "")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    typer.echo(f"listening as {aet} on {host}:{listener.port}; {session.bundle.name} on {session.device}")
    sys.stdout.flush()
    while not listener.wait(1.0):
        pass
    typer.echo("stopping")
    listener.stop()


def _check(settings: RunSettings) -> None:
    """Call every node and print what it says; exit code 2 when one does not answer."""
    from medxai.session import quiet_libraries
    from medxai.transport.echo import echo
    from medxai.transport.tls import server_context

    quiet_libraries()
    if settings.listen is not None and settings.listen.tls is not None:
        server_context(settings.listen.tls)
    nodes: dict[str, Destination] = {node.name: node for node in (*settings.sources, *settings.destinations)}
    bad = 0
    for name, node in nodes.items():
        try:
            echo(node)
            typer.echo(f"{name}: answers")
        except MedxaiError as error:
            bad += 1
            typer.secho(f"{name}: {error}", err=True, fg="red")
    if bad:
        raise typer.Exit(2)


def pull(
    config: Annotated[Path, typer.Argument(help="YAML file of settings with a section listen.")],
    source: Annotated[str, typer.Option("--from", help="Name of a source or destination in the settings.")],
    study: Annotated[list[str] | None, typer.Option(help="StudyInstanceUID; repeatable.")] = None,
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID: only this series of the one study.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="KEYWORD=VALUE, like StudyDate=20240101-20240131; repeatable, all must hold."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Studies at most.")] = 100,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Leave the analysis to a listener.")] = False,
) -> None:
    """Fetch studies from an archive and explain them: QIDO-RS and WADO-RS, or C-FIND with C-MOVE or C-GET.

    Where a listener runs on the same spool it goes on with them; else this command does, and delivers. For C-MOVE the
    archive has to know our title and port (listen.aet, listen.port).
    """
    from medxai.cli_progress import progress
    from medxai.cli_rows import print_rows
    from medxai.listener import work_off
    from medxai.transport.fetch import fetch_study, matching_studies
    from medxai.transport.receive import Receiver

    keys = dict(_pair(item) for item in query or ())
    if bool(study) == bool(keys) or (series and len(study or ()) != 1):
        msg = "give --study or --query, and --series with one --study only"
        raise SettingsError(msg)
    session, spool = _open(config)
    settings = session.settings
    try:
        node = settings.node(source)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    listen_settings = settings.listen
    if listen_settings is None:  # _settings has checked it
        raise typer.Exit(2)
    uids = list(study) if study else matching_studies(node, keys)[:limit]
    if not uids:
        msg = f"{source} has no study that matches"
        raise MedxaiError(msg)
    failed = 0
    with spool.exclusive() as alone, progress() as step:
        receiver = None
        if alone:
            spool.recover()
            if node.kind == "dimse" and node.retrieve == "move":
                receiver = Receiver(listen_settings, spool, session.outbox.is_ours)
                receiver.start()
        try:
            for number, uid in enumerate(uids):
                step("fetch", number, len(uids))
                try:
                    key, count = fetch_study(node, uid, spool, series_uid=series, move_to=listen_settings.aet)
                    typer.echo(f"{key}: {count} objects fetched")
                except MedxaiError as error:
                    failed += 1
                    typer.secho(f"error: {error}", err=True, fg="red")
        finally:
            if receiver is not None:
                receiver.stop()
        if not alone:
            typer.echo("a listener runs on this spool and goes on with them")
        elif not fetch_only:
            rows = [session.worklist.get(row.id) for row in work_off(session, spool)]
            print_rows(rows, settings.output)
            failed += sum(row.state != "done" for row in rows)
    if failed:
        raise typer.Exit(2)


def _pair(text: str) -> tuple[str, str]:
    from pydicom.datadict import tag_for_keyword

    name, equals, value = text.partition("=")
    if not equals or tag_for_keyword(name) is None:
        msg = f"{name!r} is not KEYWORD=VALUE with a keyword of the standard, like StudyDate or ModalitiesInStudy"
        raise SettingsError(msg)
    return name, value


def _database(out: str) -> Any:
    from medxai.records.database import open_database, sqlite_url

    if "://" in out:
        return open_database(out)
    path = Path(out) / ".medxai" / "worklist.sqlite"
    if not path.is_file():
        msg = "holds no worklist; give the output folder of a run, or a database URL"
        raise MedxaiError(msg, study=out)
    return open_database(sqlite_url(path))


@outbox_app.command("list")
def outbox_list(
    out: Annotated[str, typer.Argument(help="Output folder, or a database URL.")],
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what was sent.")] = False,
) -> None:
    """List objects that have to arrive, with attempts, the next one, and the reason of the last failure."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from medxai.records.outbox import OPEN, Outbox

    outbox = Outbox(_database(out))
    rows = outbox.rows(state or (() if everything else OPEN))
    table = Table(title=f"{len(rows)} objects")
    for column in ("study", "destination", "state", "attempts", "next attempt", "file", "reason"):
        table.add_column(column, overflow="fold")
    for row in rows:
        due = row.state in ("waiting", "uncertain")
        when = (
            datetime.fromtimestamp(row.next_try).strftime("%H:%M:%S") if due and row.next_try else "now" if due else ""
        )
        cells = (row.study_key, row.destination, row.state, str(row.attempts), when, Path(row.path).name, row.reason)
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    Console(width=None if sys.stdout.isatty() else 180).print(table)


@outbox_app.command("retry")
def outbox_retry(
    out: Annotated[str, typer.Argument(help="Output folder, or a database URL.")],
    destination: Annotated[str | None, typer.Option(help="Only what goes there.")] = None,
) -> None:
    """Make everything that waits or was refused due now; the listener, or the next run, sends it.

    The destination is asked first whether it has an object.
    """
    from medxai.records.outbox import Outbox

    count = Outbox(_database(out)).retry(destination)
    typer.echo(f"{count} objects are due now")


@outbox_app.command("withdraw")
def outbox_withdraw(
    out: Annotated[str, typer.Argument(help="Output folder, or a database URL.")],
    destination: Annotated[str, typer.Option(help="Name of the destination that gets nothing more of it.")],
) -> None:
    """Give up what waits for a destination, for example one that was taken out of the settings."""
    from medxai.records.outbox import Outbox

    count = Outbox(_database(out)).withdraw(destination)
    typer.echo(f"{count} objects will not be sent to {destination}; running their studies again announces them anew")


def received(
    out: Annotated[str, typer.Argument(help="Output folder, or a database URL.")],
    again: Annotated[
        str | None, typer.Option(help="Pseudonym of a study to analyse again, also one that was refused.")
    ] = None,
) -> None:
    """List studies that arrived over the network, by pseudonym."""
    from rich.console import Console
    from rich.table import Table

    from medxai.records.received import ReceivedStudies

    studies = ReceivedStudies(_database(out))
    if again is not None and not studies.queue(again):
        msg = "is not among the received studies that can be queued"
        raise MedxaiError(msg, study=again)
    table = Table(title="received studies")
    for column in ("study", "state", "objects", "bytes", "jobs", "reason"):
        table.add_column(column, overflow="fold")
    for row in studies.rows():
        jobs = " ".join(str(number) for number in row.jobs)
        table.add_row(row.study_key, row.state, str(row.objects), str(row.bytes), jobs, row.reason.replace("[", "\\["))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
