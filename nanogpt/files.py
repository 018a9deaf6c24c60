"""Atomic writes, safe reads and locks of files."""

import errno
import fcntl
import io
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nanogpt.errors import BadCheckpoint, one_line


def fsync(path: Path) -> None:
    """Force a file's content, or a folder's entries (names, renames), to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_no_link(path: str, flags: int) -> int:
    """Open a file for `open(…, opener=open_no_link)`. Raises OSError for a symbolic link, a pipe or a device."""
    return check_descriptor(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), path)


def check_descriptor(descriptor: int, path: str | Path) -> int:
    """Return the descriptor if it is of a regular file; else close it and raise OSError."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = next((word for is_kind, word in KINDS if is_kind(mode)), "something else")
    raise OSError(errno.EINVAL, f"not a regular file but {kind}", str(path))


KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises OSError for a pipe, a device, a socket or a folder, and never waits."""
    return open(path, "rb", opener=open_descriptor)


def open_descriptor(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a regular file that is open for reading. Raises OSError."""
    try:
        return check_descriptor(os.open(path, flags | os.O_NONBLOCK), path)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "not a regular file but a socket", str(path)) from None
        raise


def check_regular(path: Path) -> None:
    """Raise OSError unless this is a regular file: for libraries that open a file themselves."""
    open_regular(path).close()


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file. Raises OSError, also if it has more than `most` bytes."""
    with open_regular(path) as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
        return file.read()


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a regular UTF-8 file with plain line ends. Raises OSError, ValueError if it isn't UTF-8."""
    return read_bytes(path).decode("utf-8", errors).replace("\r\n", "\n").replace("\r", "\n")


def read_json_bytes(path: Path) -> Any:
    """Return what a JSON file says. Raises OSError, and ValueError if it isn't JSON."""
    return from_json(read_bytes(path, MOST_JSON))


MOST_JSON = 2**28  # bytes of a JSON file that is read whole


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; {} where the file is missing, can't be read or holds anything else."""
    try:
        value: Any = read_json_bytes(path)
    except (OSError, ValueError):
        return {}
    return {str(name): entry for name, entry in value.items()} if isinstance(value, dict) else {}


def write_file(path: Path, content: str | bytes) -> None:
    """Write a small file and force it to disk. Raises OSError."""
    with open(path, "wb", opener=open_no_link) as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a small file atomically: a crash leaves the old content or the new. Raises OSError, without leftovers."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        write_file(partial, content)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def list_entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted by name; nothing if it does not exist or has been deleted meanwhile."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def mtime(path: Path) -> float:
    """Return when a file or folder was last changed; 0 if it does not exist or has been deleted meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def append_line(path: Path, line: str) -> None:
    """Append a line, also while other processes do, and force it to disk. Raises OSError."""
    with open(path, "ab", buffering=0, opener=open_no_link) as file:
        file.write((line + "\n").encode())
        os.fsync(file.fileno())


def reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these keys. Raises ValueError for a key that is there twice: nobody knows which counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {one_line(repeated)} twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=reject_repeated_keys)  # json.loads would make one for each row


def from_json(text: str | bytes) -> Any:
    """Return what a JSON text says. Raises ValueError, also if it is nested too deeply or repeats a key."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises BadCheckpoint."""
    try:
        value: object = read_json_bytes(path)
    except FileNotFoundError:
        raise BadCheckpoint(f"{one_line(path)}: missing") from None
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{one_line(path)}: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{one_line(path)}: not a JSON object")
    return {str(name): entry for name, entry in value.items()}


@contextmanager
def hold_lock(path: Path, wait: bool) -> Generator[bool, None, None]:
    """Hold the lock file `path` while inside; yields False at once when it is taken and `wait` is not set.

    The lock belongs to the process and dies with it, however it dies. Network file systems without locks get an owner
    file with a heartbeat instead (`owned`).
    """
    while True:
        with open(path, "a+", opener=open_no_link) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                with hold_owner_file(path.with_name(path.name + ".owner"), wait) as mine:
                    yield mine
                return
            if is_still_at(path, file.fileno()):
                yield True
                return
        path.parent.mkdir(parents=True, exist_ok=True)  # deleted too, if nothing else was in it


def is_still_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the one at `path`: it may have been deleted before its lock was taken."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
HEARTBEAT = 5.0  # seconds between beats; an owner that misses four of them is dead


@contextmanager
def hold_owner_file(path: Path, wait: bool) -> Generator[bool, None, None]:
    """Hold a lock on a file system without locks: the process that creates the file owns it and keeps writing to it.

    A waiting process sees by changes of the content that the owner is alive, whatever the clocks of the machines say.
    """
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            dead = find_dead_owner(path)
            if dead is not None:
                remove_dead_owner(path, dead)
            elif not wait:
                yield False
                return
    over = threading.Event()
    heart = threading.Thread(target=write_heartbeats, args=(path, over), daemon=True)
    heart.start()
    try:
        yield True
    finally:
        over.set()
        heart.join()
        path.unlink(missing_ok=True)


def write_heartbeats(path: Path, over: threading.Event) -> None:
    """Write another text to the file every few seconds."""
    name, count = f"{socket.gethostname()} {os.getpid()}", 0
    while True:
        count += 1
        with suppress(OSError):
            path.write_text(f"{name} {count}\n")
        if over.wait(HEARTBEAT):
            return


def find_dead_owner(path: Path) -> str | None:
    """Return the file's text if it does not change within four heartbeats, or None if it changes or is deleted."""
    try:
        before = read_text(path)
        for _ in range(16):
            time.sleep(HEARTBEAT / 4)
            if read_text(path) != before:
                return None
        return before
    except FileNotFoundError:
        return None


def remove_dead_owner(path: Path, text: str) -> None:
    """Remove a dead owner's file. If another process has taken the lock meanwhile, its file is put back."""
    aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
        if read_text(aside) != text:
            with suppress(FileExistsError):  # its next heartbeat has written the file again
                os.link(aside, path)
        aside.unlink()
