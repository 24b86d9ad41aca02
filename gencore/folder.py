"""A folder that appears whole: written beside its place, made durable, then put there by one rename.

Whoever is killed at any moment leaves the old folder or the new one, never a mixture; what he left beside it is removed by the
next one who writes there."""
import contextlib
import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from gencore.check import InputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2     # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def appearing(folder):
    """Yields an empty temporary sibling (`.name.tmp-<pid>`); afterwards it is `folder`. An exception leaves `folder` as it was."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    sweep(folder)
    fresh = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    fresh.mkdir()
    try:
        yield fresh
        for place, _, files in os.walk(fresh, topdown=False):
            for name in files:
                if os.path.isfile(os.path.join(place, name)):   # neither a link that leads nowhere nor a socket
                    _flush(os.path.join(place, name))
            _flush(place)
        _put(fresh, folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)                # the failed new folder, or the old one after an exchange
        if folder.exists():
            shutil.rmtree(_old(folder), ignore_errors=True)


def recover(path):
    """Puts an old folder back when its writer was killed between the two renames of the way without exchange.

    `path` is the folder or something up to two levels inside it."""
    path = Path(path)
    for folder in (path.parent.parent, path.parent, path):
        if not os.path.exists(folder) and os.path.isdir(_old(folder)):
            with contextlib.suppress(OSError):                  # another reader was faster, or the disk is read-only
                os.rename(_old(folder), folder)


def sweep(folder):
    """Removes what killed writers left beside `folder`; a writer that is alive keeps his."""
    prefix = f".{folder.name}.tmp-"
    for stray in folder.parent.iterdir():
        if stray.name.startswith(prefix) and not _alive(stray.name[len(prefix):]):
            shutil.rmtree(stray, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(_old(folder), ignore_errors=True)


def files_below(folder, *, everything=False):
    """Yields the files under `folder` in order; with `everything` hidden ones too, links to folders, and folders in which nothing is."""
    for place, folders, names in os.walk(folder):
        if everything:
            yield from (Path(place, name) for name in sorted(folders) if os.path.islink(os.path.join(place, name)))
            if not folders and not names and Path(place) != Path(folder):
                yield Path(place)
        folders[:] = sorted(name for name in folders if everything or not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if everything or not name.startswith("."))


def carry(path, fresh):
    """Takes a file, a link or an empty folder along into the new folder, without copying where the file system has links."""
    fresh.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        return fresh.mkdir(exist_ok=True)
    try:
        os.link(path, fresh, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(path, fresh, follow_symlinks=False)
    return None


def folder_for(path, *, only=None):
    """A folder that a script writes into, made where it is not there -> its whole path; InputError where that can't be.

    only: the names of all that the script writes there, where it puts a new folder in its place: one that holds anything else, or in which the shell
    stands, is refused."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        whole = Path(path).resolve()
        others = sorted({entry.name for entry in whole.iterdir() if not entry.name.startswith(".")} - {*only}) if only else []
    except OSError as error:
        raise InputError(f"can't write into {path}: {error.strerror or error}; choose another folder") from error
    if only and Path.cwd().is_relative_to(whole):
        raise InputError(f"{path} would be written anew as a whole while the shell stands in it: choose a folder inside it")
    if others:
        raise InputError(f"{path} holds {others[0]}, which is nothing that is written here: choose another folder, so that nothing is lost")
    return whole


def file_for(path):
    """A file that a script writes at its end -> its Path, the folder made; InputError where that can't be."""
    folder_for(Path(path).parent)
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder: give the name of a file")
    return Path(path)


@contextlib.contextmanager
def writing(path):
    """Around the writing of a file that a user named: InputError where it can't be written, with its folder when that is not there."""
    try:
        yield
    except OSError as error:
        folder = Path(path).parent
        why = (error.strerror or error) if folder.is_dir() else f"there is no folder {folder}, make it first"
        raise InputError(f"can't write {path}: {why}") from error


def save_figure(figure, path, *, dpi=120, margin=None):
    """A matplotlib figure -> path, PNG, SVG or PDF as its name ends; InputError for another end and where it can't be written. margin="tight": the
    picture ends where the drawing does."""
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"the picture's name should end in .png, .svg or .pdf, got {Path(path).name!r:.80}")
    with writing(path):
        figure.savefig(path, dpi=dpi, bbox_inches=margin)
    return Path(path)


def write_file(path, raw):
    """Bytes -> a file that appears whole, in the same manner."""
    path = Path(path)
    fresh = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        fresh.write_bytes(raw)
        _flush(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _put(fresh, folder):
    """`fresh` takes the place of `folder`; the old one is left under the name of `fresh` or of `.name.old`."""
    if not folder.exists():
        return os.rename(fresh, folder)
    if _exchange(fresh, folder):
        return None
    for _ in range(9):                                          # a reader may put the old one back in between: recover()
        os.rename(folder, _old(folder))
        try:
            return os.rename(fresh, folder)
        except OSError:
            if not folder.exists():
                os.rename(_old(folder), folder)
                raise
    raise FileExistsError(errno.EEXIST, "somebody else keeps writing there", str(folder))


def _exchange(one, other):
    """Swaps two folders in one step where the system can (Linux); False where it can't."""
    if not sys.platform.startswith("linux"):
        return False
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return swap is not None and swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _old(folder):
    return folder.parent / f".{folder.name}.old"


def _flush(path):
    """Waits until a file or folder is on the disk."""
    if os.name == "nt" and os.path.isdir(path):                 # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid):
    """Is there another process of this number? (Ours writes one folder at a time, so its own strays are dead.)"""
    if not pid.isdigit() or int(pid) == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
