"""Checks the settings of huggingface_hub and its HTTP client, which fail on a wrong one with errors
of their own, and show parts of it. Imports neither: some settings are read by their import.
"""

from __future__ import annotations

import os
import ssl
from urllib.parse import urlsplit

from ltxq.errors import ConfigurationError
from ltxq.proxies import check_proxies

_TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def check_hub_settings() -> None:
    """Check what the environment says about the hub. No URL is shown: it may have a password.

    Raises:
        ConfigurationError: one of the variables cannot be used; with its name.
    """
    _check_endpoint()
    check_proxies()
    for name in _TIMEOUTS:
        if not os.environ.get(name, "1").strip().isdecimal():
            raise ConfigurationError(f"{name} is not a whole number of seconds.")
    for name in _CERTIFICATES:
        value = os.environ.get(name)
        if value and (problem := _no_certificates(name, value)):
            raise ConfigurationError(
                f"{name} names {value}, {problem}.",
                hint="Name a CA bundle (PEM), or unset it to use the system's.",
            )


def _no_certificates(name: str, value: str) -> str | None:
    """Why the variable's file or folder of certificates cannot be used."""
    try:
        if name == "SSL_CERT_DIR":
            os.listdir(value)
        else:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except ssl.SSLError:
        return "which has no certificate in PEM form"
    except OSError as exc:
        return f"which cannot be read: {exc.strerror}"
    return None


def _check_endpoint() -> None:
    value = os.environ.get("HF_ENDPOINT", "")
    if not value:
        return
    try:
        url = urlsplit(value)
        usable = bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        usable, url = False, urlsplit("")
    if not usable or url.scheme not in ("http", "https") or any(c.isspace() for c in value):
        raise ConfigurationError(
            "HF_ENDPOINT is not a URL that can be used.",
            hint="Write it as https://huggingface.co.",
        )
