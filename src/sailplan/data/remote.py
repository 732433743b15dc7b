"""Fetches remote images, from allowed hosts only, with a limit in time and in size."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Collection
from http.client import HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from sailplan.errors import DataError

TIMEOUT_S = 20.0
"""How long one image may take."""

SIZE_LIMIT_BYTES = 64 * 2**20
"""The most bytes that one image may have."""

_CHUNK_BYTES = 2**16


def fetch(
    url: str,
    allowed_hosts: Collection[str],
    *,
    timeout_s: float = TIMEOUT_S,
    size_limit_bytes: int = SIZE_LIMIT_BYTES,
) -> bytes:
    """Returns what an http or https URL holds.

    Redirects are followed to allowed hosts only.

    Args:
        url: The URL.
        allowed_hosts: Names, in lower case, each `host` or `host:port`.
        timeout_s: The limit in seconds, for each answer of the host and for the whole.
        size_limit_bytes: The limit in bytes.

    Raises:
        DataError: The host is not allowed, does not answer in time, or sends too much.
    """
    _check_host(url, allowed_hosts)
    deadline = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(_CheckedRedirects(allowed_hosts))
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            body = bytearray()
            while chunk := answer.read(_CHUNK_BYTES):
                body += chunk
                if len(body) > size_limit_bytes:
                    raise DataError(
                        f"image {url} is too large", allowed=f"at most {size_limit_bytes:,} bytes"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not done after {timeout_s:g} s")
            return bytes(body)
    except (OSError, ValueError) as error:
        # A URLError is `<urlopen error …>` around the reason; an HTTPError tells its code itself.
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DataError(
            f"image {url} could not be fetched: {reason}", kind="image-missing"
        ) from error


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allowed_hosts: Collection[str]) -> None:
        self.allowed_hosts = allowed_hosts

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_host(newurl, self.allowed_hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_host(url: str, allowed_hosts: Collection[str]) -> None:
    try:
        parts = urlsplit(url)
        names = {parts.hostname, f"{parts.hostname}:{parts.port}"}
    except ValueError as error:
        raise DataError(f"image {url} has no usable address: {error}") from error
    if parts.scheme not in ("http", "https") or not names & set(allowed_hosts):
        raise DataError(
            f"image {url} is remote, on a host that is not allowed",
            allowed=", ".join(sorted(allowed_hosts)) or "no hosts",
            todo=f"add it to the run file if you trust it: allowed_image_hosts: [{parts.hostname}]",
            kind="image-refused",
        )
