"""What the hub client's and the system's failures mean for the person at the keyboard.

Owns the translation of exceptions into LocalR1Error with a hint. Knows nothing of when to retry, but which failures may
pass by themselves. The transport library differs between versions of the client, so its exceptions go by class name.
"""

import errno
import os
import ssl

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from localr1.errors import AccessError, DiskError, LocalR1Error, NetworkError, NotFoundError, UsageError, is_full
from localr1.hub.source import HubRepo

PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
PASSING_NAMES = {"TimeoutException", "NetworkError", "RemoteProtocolError"}
AGAIN = "try again: what has arrived is kept"
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"


def explain(error: Exception, repo: HubRepo) -> LocalR1Error | None:
    """The error to show in place of `error`; None if it is none that a user, network or disk can cause."""
    if isinstance(error, LocalR1Error):
        return error
    if isinstance(error, OfflineModeIsEnabled):
        return NetworkError(
            f"{repo} is not here in full, and HF_HUB_OFFLINE is set", "go online, and unset HF_HUB_OFFLINE"
        )
    if isinstance(error, UnicodeEncodeError):
        return AccessError("the token holds a character that no token has", f"copy it again: {LOG_IN}")
    if isinstance(error, HFValidationError):
        return UsageError(f"{repo} is not a repository's name", "write org/repo[@revision]")
    if isinstance(error, HfHubHTTPError | EntryNotFoundError):
        return _answered(error, repo)
    if is_certificate(error):
        return NetworkError(
            f"{constants.ENDPOINT} has a certificate that is not trusted: {_line(error)}",
            "check the clock; behind a company's proxy set SSL_CERT_FILE to its certificates",
        )
    if _names(error) & {"HTTPError", "InvalidURL"} or isinstance(error, ConnectionError | TimeoutError):
        return _not_reached(error)
    return _disk(error) if isinstance(error, OSError) else None


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: a lost connection, a timeout, a busy or broken server."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUSES
    if isinstance(error, LocalR1Error):
        return False
    lost = bool(_names(error) & PASSING_NAMES) or isinstance(error, ConnectionError | TimeoutError)
    return lost and not is_certificate(error) and not isinstance(error, OfflineModeIsEnabled)


def is_timeout(error: Exception) -> bool:
    """Whether the other side was silent for longer than is waited."""
    return "TimeoutException" in _names(error) or isinstance(error, TimeoutError)


def is_certificate(error: BaseException) -> bool:
    """Whether a failed TLS certificate check is at the bottom of this."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _answered(error: HfHubHTTPError | EntryNotFoundError, repo: HubRepo) -> LocalR1Error:
    """The hub answered, and said no."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    page = f"{constants.ENDPOINT}/{repo.repo_id}"
    if isinstance(error, GatedRepoError):
        then = "wait for the approval there" if status == 403 else LOG_IN
        return AccessError(
            f"{repo.repo_id} is gated: its authors give access one by one", f"ask at {page}, then {then}"
        )
    if isinstance(error, DisabledRepoError):
        return AccessError(f"{repo.repo_id} is disabled on the hub", f"see {page}; choose another repository")
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(
            f"{repo.repo_id} has no revision {repo.revision!r}", f"see {page}/tree/main for branches and tags"
        )
    if isinstance(error, EntryNotFoundError):
        file = str(error.response.url).rpartition("/")[2] if isinstance(error, HfHubHTTPError) else _line(error)
        return NotFoundError(f"{repo} lists {file}, but does not have it", "try again in some minutes")
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            f"the hub has no model {repo.repo_id}", f"check the spelling at {page}; if it is private, {LOG_IN}"
        )
    if status in (401, 403):
        return AccessError(f"the hub refuses your token for {repo.repo_id} (status {status})", f"{LOG_IN} again")
    if status == 429:
        return NetworkError(
            "the hub says: too many requests (status 429)", f"wait some minutes; logged in you may ask more: {LOG_IN}"
        )
    if status >= 500:
        return NetworkError(f"the hub is in trouble (status {status})", f"{AGAIN}; see https://status.huggingface.co")
    return NetworkError(f"the hub answered with status {status}: {_line(error)}", AGAIN)


def _not_reached(error: Exception) -> LocalR1Error:
    names = _names(error)
    if "TimeoutException" in names or isinstance(error, TimeoutError):
        return NetworkError(f"{constants.ENDPOINT} did not answer in time", f"check the connection and {AGAIN}")
    if "ProxyError" in names:
        return NetworkError(f"the proxy refused the connection: {_line(error)}", "check HTTPS_PROXY")
    if names & {"InvalidURL", "UnsupportedProtocol"}:
        return NetworkError(f"{constants.ENDPOINT!r} is not an address: {_line(error)}", "check HF_ENDPOINT")
    if "ConnectError" in names:
        hint = "check the connection (and HF_ENDPOINT, if you set it)"
        return NetworkError(f"cannot reach {constants.ENDPOINT}: {_line(error)}", hint)
    return NetworkError(f"the connection to {constants.ENDPOINT} broke: {_line(error)}", AGAIN)


def _disk(error: OSError) -> LocalR1Error:
    where = os.fspath(error.filename) if error.filename else constants.HF_HUB_CACHE
    where = where.decode(errors="replace") if isinstance(where, bytes) else where
    reason = error.strerror or _line(error)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return AccessError(
            f"cannot write {where}: {reason}", "check its permissions, or set HF_HOME to a folder of yours"
        )
    if is_full(error):
        return DiskError(
            f"the disk is full: {where}", f"free some space, or set HF_HOME to a larger disk; then {AGAIN}"
        )
    return DiskError(f"the disk failed at {where}: {reason}", "check the disk, or set HF_HOME to another one")
