"""Folders behind an fsspec URL (s3://bucket/store, memory://store): put whole, get whole, try again, say what failed.

An object store shows an object only when it is complete: there a file is put under its own name. Elsewhere (sftp, smb,
hdfs) it is put under a temporary name and moved. Faults that may pass (a refused connection, a throttled request) are
tried again after 0.5, 1, 2 and 4 seconds; others (no permission, no such bucket) at once end the call.

fsspec, and the package of the scheme (s3fs for s3://), are imported when a URL is used, never for a local path.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from interp.errors import InputError

Result = TypeVar("Result")
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before the second try, the third, ..."""
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory"}
_LOCAL = {"file", "local"}
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, InputError)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "GoogleAuthError")


def as_url(path: str | Path) -> str | None:
    """`path` as a URL, None if it is a local path. A URL that went through `Path` gets its slash back."""
    if not (found := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)):
        return None
    return None if found[1] in _LOCAL else f"{found[1]}://{found[2].rstrip('/')}"


def as_local(path: str | Path) -> Path:
    """A local path, `file:///...` included."""
    found = re.match(rf"({'|'.join(_LOCAL)}):/+(.*)", str(path), re.DOTALL)
    return Path("/" + found[2]) if found else Path(path)


class Remote:
    """A folder behind a URL."""

    def __init__(self, url: str, *, fs: Any = None, waits: tuple[float, ...] = WAITS) -> None:
        self.url, self.waits = url, waits
        self.scheme = url.partition("://")[0]
        self.fs, self.root = (fs, url.partition("://")[2]) if fs is not None else _connected(url)

    def at(self, name: str) -> str:
        """The key of a file."""
        return f"{self.root}/{name}"

    def sizes(self) -> dict[str, int]:
        """Files and their sizes."""

        def listed() -> list[dict[str, Any]]:
            self.fs.invalidate_cache()
            try:
                return self.fs.ls(self.root, detail=True)
            except FileNotFoundError:
                return []

        found = self.trying("list", "", listed)
        return {item["name"].rsplit("/", 1)[-1]: int(item["size"] or 0) for item in found if item["type"] == "file"}

    def put(self, source: Path, name: str) -> None:
        """Write a file; it is there when it is whole."""

        def once() -> None:
            if self.scheme in _WHOLE:
                self.fs.put_file(str(source), self.at(name))
            else:
                partial = self.at(f".{name}.partial")
                self.fs.makedirs(self.root, exist_ok=True)
                self.fs.put_file(str(source), partial)
                self.fs.mv(partial, self.at(name))
            if (size := int(self.fs.size(self.at(name)) or 0)) != source.stat().st_size:
                raise OSError(f"{size} bytes arrived of {source.stat().st_size}")

        self.trying("write", name, once)

    def get(self, name: str, target: Path) -> None:
        """Read a file to `target`."""
        self.trying("read", name, lambda: self.fs.get_file(self.at(name), str(target)))

    def read(self, name: str) -> bytes:
        """Read a small file."""
        return self.trying("read", name, lambda: self.fs.cat_file(self.at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self.trying("write", name, lambda: self.fs.pipe_file(self.at(name), content))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

        def once() -> None:
            if self.fs.exists(self.at(name)):
                self.fs.rm_file(self.at(name))

        self.trying("remove", name, once)

    def trying(self, verb: str, name: str, call: Callable[[], Result]) -> Result:
        """`call`, again after faults that may pass; an error that names file and cause after the last."""
        for wait in (*self.waits, None):
            try:
                return call()
            except Exception as error:
                if type(error).__name__ in _NO_CREDENTIALS:
                    raise InputError(
                        f"{self.url}: no credentials for {self.scheme} were found ({error}). Set them as its package "
                        "reads them, for s3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
                    ) from error
                if isinstance(error, _FINAL) or not isinstance(error, OSError | EOFError | TimeoutError):
                    raise InputError(f"cannot {verb} {self.url}/{name}: {_said(error)}") from error
                if wait is None:
                    raise InputError(
                        f"cannot {verb} {self.url}/{name}, {len(self.waits) + 1} tries failed: {_said(error)}"
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _connected(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise InputError(f"{url} needs the package fsspec: pip install 'midlens[remote]'") from None
    scheme = url.partition("://")[0]
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise InputError(
            f"{url} needs a package that is missing ({error}); for s3: pip install 'midlens[remote]'"
        ) from error
    except ValueError as error:
        raise InputError(f"{url}: fsspec cannot use {scheme!r} ({error}); give a local path or a known URL") from error
    return fs, root.rstrip("/")
