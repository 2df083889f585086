"""Compiles the hot path with mypyc, in place, for an editable install (docs/compiled.md).

    python scripts/compile.py               compile if anything has changed since the last time
    python scripts/compile.py --untrained   the same in half the time, for code a tenth slower
    python scripts/compile.py --clean       remove what was compiled

Needs a C compiler, and mypy and setuptools from requirements/dev.lock. Everything it makes is ignored by
git: extension modules beside their sources, and the stamp that ``fairlead.native`` holds them against.
"""

import argparse
import ast
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PACKAGE = SRC / "fairlead"
STAMP = PACKAGE / ".compiled"
WORK = ROOT / "build" / "compiled"
TRAINING = ROOT / "scripts" / "train.py"

HOT = (
    "core/**/*.py",
    "engine/decode_batch.py",
    "engine/kv.py",
    "engine/model.py",
    "engine/profiles.py",
    "engine/sequence.py",
    "engine/step.py",
    "engine/steptime.py",
    "report/itl.py",
    "simulate/world/*.py",
    "trace/generators/*.py",
)
"""What is compiled: patterns in the package. Packages' own ``__init__`` stay as they are."""
COLD = {"core/commands.py", "core/events.py", "core/model.py", "core/open_class.py", "core/settings.py"}
"""What is not: plain data, and a mark for the compiler. Compiling gains nothing there, and loses annotations
that decision logs need."""

Say = Callable[[str], None]


class CannotCompileError(Exception):
    """Why nothing was compiled, and what helps."""


def modules() -> list[Path]:
    """Return the sources to compile, sorted. A pattern that finds nothing is an error."""
    found: list[Path] = []
    for pattern in HOT:
        matches = [path for path in PACKAGE.glob(pattern) if path.name != "__init__.py"]
        matches = [path for path in matches if path.relative_to(PACKAGE).as_posix() not in COLD]
        if not matches:
            raise CannotCompileError(f"scripts/compile.py: no file matches {pattern}; put its list right")
        found += matches
    return sorted(found)


def read_by(sources: list[Path]) -> list[Path]:
    """Return ``sources`` and every file of the package that they import: constants are compiled in."""
    found: dict[Path, None] = {}
    pending = list(sources)
    while pending:
        path = pending.pop()
        if path in found:
            continue
        found[path] = None
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fairlead":
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] == "fairlead"]
            else:
                continue
            for name in names:
                base = SRC.joinpath(*name.split("."))
                pending += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]
    return sorted(found)


def build(into: Path, say: Say, train: bool = True) -> list[Path]:
    """Compile into the folder ``into``, laid out as ``src`` is; return the extension modules.

    With ``train``, and gcc, it is compiled twice: once to count what scripts/train.py runs, and again with
    the counts.
    """
    _check_tools()
    shutil.rmtree(WORK / "objects", ignore_errors=True)  # and the counts, which lie beside the objects
    if _trains(train):
        say(f"translating {len(modules())} modules to C, and compiling them to be counted in")
        _compile(into, "-fprofile-generate", "-fprofile-update=single")
        say("counting what runs most")
        _train(into)
        say("compiling for what runs most")
        # Partial: what the training never came to is not made small, and slow, for that.
        _compile(
            into, f"-flto={_jobs()}", "-fprofile-use", "-fprofile-partial-training", "-Wno-missing-profile"
        )
    else:
        say(f"translating {len(modules())} modules to C and compiling them; this takes a minute or so")
        _compile(into, *([f"-flto={_jobs()}"] if _gcc() else []))
    return sorted(into.rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")))


def _trains(wanted: bool) -> bool:
    return wanted and _gcc() >= 10


def _compile(into: Path, *flags: str) -> None:
    from mypyc.build import mypycify  # noqa: PLC0415 - checked by _check_tools, with a message
    from setuptools import Distribution  # noqa: PLC0415

    sources = [str(path.relative_to(SRC)) for path in modules()]
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    options = ["--config-file=", "--strict", "--ignore-missing-imports", f"--cache-dir={WORK / 'mypy'}"]
    if _gcc():
        flags += ("-fno-semantic-interposition",)
    with contextlib.chdir(SRC):
        extensions = mypycify(
            options + sources, opt_level="3", debug_level="0", multi_file=True, target_dir=str(WORK / "c")
        )
        for extension in extensions:
            extension.extra_compile_args += [*flags]
            extension.extra_link_args += [*flags]
        distribution = Distribution({"name": "fairlead-compiled", "ext_modules": extensions})
        command = _builder()(distribution)
        command.build_lib, command.build_temp = str(into), str(WORK / "objects")
        command.ensure_finalized()
        command.run()


def _train(built: Path) -> None:
    """Run scripts/train.py on what was ``built``, put into a copy of the package."""
    copy = WORK / "train"
    shutil.rmtree(copy, ignore_errors=True)
    leave = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", STAMP.name)
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=leave)
    shutil.copytree(built, copy, dirs_exist_ok=True)
    env = os.environ | {"PYTHONPATH": str(copy), "FAIRLEAD_PURE": "0"}
    subprocess.run([sys.executable, TRAINING], env=env, check=True)
    shutil.rmtree(copy)


def _builder() -> type[Any]:
    """Return setuptools' ``build_ext`` with the files of an extension compiled side by side."""
    from setuptools.command.build_ext import build_ext  # noqa: PLC0415 - as in build

    class Parallel(build_ext):  # type: ignore[misc]  # setuptools has no types
        def build_extension(self, ext: Any) -> None:
            def compile_one(source: str) -> list[str]:
                made: list[str] = self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*ext.extra_compile_args, "-w"],
                )
                return made

            with ThreadPoolExecutor(_jobs()) as pool:
                for made in pool.map(compile_one, ext.sources):
                    ext.extra_objects += made
            ext.sources = []
            super().build_extension(ext)

    return Parallel


@functools.cache
def _gcc() -> int:
    """Return gcc's major version, 0 for another compiler.

    It optimises over all files, which is worth 5%, and from version 10 on by counts, worth a tenth and more.
    """
    said = _said("--version")
    return int(_said("-dumpversion").partition(".")[0]) if "Free Software Foundation" in said else 0


def _said(flag: str) -> str:
    return subprocess.run([*_compiler(), flag], capture_output=True, text=True, check=False).stdout


def _compiler() -> list[str]:
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def _jobs() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_tools() -> None:
    """Raise CannotCompileError, saying what to install, if something is missing."""
    words = _compiler()
    if not any(shutil.which(word) for word in words[:2]):  # the first may be a launcher such as ccache
        raise CannotCompileError(
            f"no C compiler: '{words[0]}' is not on the path. Install one (Debian: build-essential),"
            " or name it in CC. fairlead works without: it then runs as pure Python."
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise CannotCompileError(
            f"no Python headers in {sysconfig.get_path('include')} (Debian: python3-dev)."
            " fairlead works without: it then runs as pure Python."
        )
    try:
        import mypyc.build  # noqa: F401, PLC0415
        import setuptools  # noqa: F401, PLC0415
    except ImportError as error:
        raise CannotCompileError(f"{error.name} is missing: `make fast` installs what this needs") from None


# ---------------------------------------------------------------------- in place


def _digest(path: Path) -> str:
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _described(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {_digest(path)} {os.path.relpath(path, PACKAGE)}"


def _stamped() -> dict[str, str]:
    """Return the digest of every file in the stamp; nothing if there is no stamp that can be read."""
    try:
        lines = STAMP.read_text().splitlines()
    except OSError:
        return {}
    split = [line.split(" ", 3) for line in lines]
    return {parts[3]: parts[2] for parts in split if len(parts) == 4}


def _read(train: bool) -> list[Path]:
    """Return every file that what is compiled comes from. The training is one, and so tells of itself."""
    return read_by(modules()) + ([TRAINING] if _trains(train) else [])


def current(train: bool) -> bool:
    """Return whether what is compiled is what the sources say, whatever the files' times are.

    What was trained is also what was asked for where training was not.
    """
    stamped = _stamped()
    expected = {os.path.relpath(path, PACKAGE) for path in _read(train)}
    if not expected <= set(stamped):
        return False
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    made = [PACKAGE / path for path in stamped if path.endswith(suffix)]
    if len(made) <= len(modules()):
        return False
    return all((PACKAGE / path).is_file() and _digest(PACKAGE / path) == was for path, was in stamped.items())


def clean() -> None:
    """Remove the extension modules. Until the stamp is gone too, or a new one is there, sources are run."""
    if STAMP.exists():
        STAMP.write_text("being replaced\n")
    for path in [*PACKAGE.rglob("*.so"), *SRC.glob("*__mypyc*.so")]:
        path.unlink()
    STAMP.unlink(missing_ok=True)


def compile_in_place(say: Say, train: bool) -> None:
    """Compile and put everything beside the sources, with a stamp. Whoever starts meanwhile runs sources."""
    read = _read(train)
    before = [_described(path) for path in read]
    built = build(WORK / "lib", say, train)
    clean()
    STAMP.write_text("being replaced\n")
    placed = []
    for path in built:
        target = SRC / path.relative_to(WORK / "lib")
        shutil.copy2(path, target)
        placed.append(target)
    _write_stamp(before + [_described(path) for path in placed])


def _write_stamp(lines: list[str]) -> None:
    new = STAMP.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(STAMP)


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[Say]:
    """Send what tools print to a file; what is said goes to where it went before."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    out, err = os.dup(1), os.dup(2)
    with log.open("w") as file, os.fdopen(out, "w") as screen:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda text: print(text, file=screen, flush=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(screen.fileno(), 1)
            os.dup2(err, 2)
            os.close(err)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the hot path in place.")
    parser.add_argument("--clean", action="store_true", help="remove what was compiled")
    parser.add_argument("--untrained", action="store_true", help="compile once, for slower code")
    parser.add_argument("--force", action="store_true", help="compile even if nothing has changed")
    args = parser.parse_args()
    if args.clean:
        clean()
        return 0
    began, log = time.monotonic(), WORK / "log.txt"
    try:
        if not args.force and current(train=not args.untrained):
            _write_stamp([_described(PACKAGE / path) for path in _stamped()])
            print("compiled already, and up to date")
            return 0
        with _logged(log) as say:
            compile_in_place(say, train=not args.untrained)
    except CannotCompileError as error:
        print(error, file=sys.stderr)
        return 2
    except (Exception, SystemExit) as error:  # noqa: BLE001 - mypyc exits; whatever it was, the log has it
        tail = "\n".join(log.read_text().splitlines()[-30:])
        print(f"{tail}\ncompilation failed ({error}); all of it is in {log}", file=sys.stderr)
        return 1
    said = subprocess.run(
        [sys.executable, "-m", "fairlead", "--version"],
        env=os.environ | {"PYTHONPATH": str(SRC), "FAIRLEAD_PURE": "0"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    print(f"done in {time.monotonic() - began:.0f} s: {said.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
