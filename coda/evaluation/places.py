"""Which files a sandboxed Python needs, where it may write, and the commands that start it."""

import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import uuid
from importlib.util import find_spec
from pathlib import Path

from coda.evaluation.inside.root import SCRATCH

SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
BOOT = "import sys; sys.path.insert(0, {!r}); from inside.launcher import main; main()"


def import_path() -> list[str]:
    """Folders of installed packages, numpy's among them: what ``-S`` leaves out of a candidate's ``sys.path``."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    numpy = find_spec("numpy")
    if numpy is not None and numpy.origin is not None:
        found.append(str(Path(numpy.origin).parents[1]))
    return list(dict.fromkeys(found))


def readable_paths() -> list[str]:
    """What a candidate may read: Python's own files, installed packages, the system's shared libraries."""
    wanted = [sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *import_path(), *SYSTEM]
    kept: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted}):
        if os.path.exists(path) and not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def python_command() -> list[str]:
    """A fresh interpreter that runs the launcher.

    As isolated as ``-I``, except that it reads its (otherwise empty) environment: ``PYTHONHASHSEED`` makes the order of
    sets, and so a score, the same in every run.
    """
    return [sys.executable, "-s", "-P", "-S", "-c", BOOT.format(str(Path(__file__).parent))]


def environment() -> dict[str, str]:
    """All that a candidate's environment holds."""
    return {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def bubblewrap_command(readable: list[str]) -> list[str]:
    """What precedes the interpreter's command to run it inside bubblewrap."""
    program = shutil.which("bwrap") or "bwrap"
    here = str(Path(__file__).parent)
    shown = [*readable, here, str(Path(sys.executable).parent), os.path.dirname(os.path.realpath(sys.executable))]
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--dev", "/dev", "--proc", "/proc"]
    for path in dict.fromkeys(shown):
        command += ["--ro-bind-try", path, path]
    return [*command, "--size", str(16 << 20), "--tmpfs", SCRATCH, "--chdir", "/", "--"]


def scratch_folder(user: int | None) -> str:
    """A new folder to work in, owned by ``user``, within one that only the harness may change."""
    outer = tempfile.mkdtemp(prefix="coda-sandbox-")
    os.chmod(outer, 0o711)  # it only holds the folder below
    inner = os.path.join(outer, "work")
    os.mkdir(inner, 0o700)
    if user is not None:
        os.chown(inner, user, user)
    return inner


def remove_scratch(inner: str) -> None:
    """Remove what `scratch_folder` made, whatever is in it: unreadable, cyclic by links, thousands of folders deep."""
    outer = os.path.dirname(inner)
    folders = [inner]
    while folders:
        folder = folders.pop()
        os.chmod(folder, stat.S_IRWXU)
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, stat.S_IRWXU)
                flat = os.path.join(outer, uuid.uuid4().hex)  # deep paths would grow beyond what a path may hold
                os.rename(entry.path, flat)
                folders.append(flat)
            else:
                os.unlink(entry.path)
        os.rmdir(folder)
    os.rmdir(outer)
