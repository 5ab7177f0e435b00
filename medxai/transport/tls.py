"""TLS contexts: 1.2 or newer, certificates always checked (PS3.15 annex B.9 to B.12; BCP 195)."""

from __future__ import annotations

import ssl
from pathlib import Path

from medxai.errors import SettingsError
from medxai.settings_network import ClientTls, ServerTls


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """Return the context with which we call others.

    Raises:
        SettingsError: a file cannot be read, or is no PEM of the right kind.
    """
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca and str(tls.ca))
    except (OSError, ssl.SSLError) as error:
        raise _unusable("ca", tls.ca, error) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate is not None and tls.key is not None:
        _load(context, tls.certificate, tls.key)
    return context


def server_context(tls: ServerTls) -> ssl.SSLContext:
    """Return the context with which we answer; with `ServerTls.client_ca` callers must show a certificate.

    Raises:
        SettingsError: a file cannot be read, or is no PEM of the right kind.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls.certificate, tls.key)
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(str(tls.client_ca))
        except (OSError, ssl.SSLError) as error:
            raise _unusable("client_ca", tls.client_ca, error) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def no_password() -> str:
        msg = "is encrypted"  # asking on a terminal would hang a service
        raise OSError(0, msg)

    try:
        context.load_cert_chain(str(certificate), str(key), password=no_password)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("certificate and key", certificate, error) from None


def _unusable(what: str, path: Path | None, error: Exception) -> SettingsError:
    reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
    return SettingsError(f"tls {what} cannot be used ({reason}); it must be an unencrypted PEM file", study=str(path))
