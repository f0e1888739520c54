"""A Dockerfile's stages, read and replayed without a container engine: each in a root folder of its own.

RUN lines are executed as they stand, as root in a private mount namespace whose root is the stage's folder; this
machine's /usr and Python, read-only, stand for the base image. COPY takes what the .dockerignore lets through. The one
change: `--no-cache-dir` is left out, so that pip's cache serves the packages.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
FINAL = ("CMD", "ENTRYPOINT", "HEALTHCHECK", "STOPSIGNAL", "USER", "VOLUME", "EXPOSE", "WORKDIR")
PYTHON = Path(sys.base_prefix)
PIP_CACHE = Path(os.environ.get("PIP_CACHE_DIR") or Path.home() / ".cache" / "pip")
_SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHARED_FOLDERS = ("usr", "dev", *([] if Path("/bin").is_symlink() else ["bin", "sbin", "lib", "lib64"]))


def _can_enter() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "nsenter", "setpriv", "chroot"))
    return (
        tools
        and os.geteuid() == 0
        and subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"]).returncode == 0
    )


needs_namespaces = pytest.mark.skipif(not _can_enter(), reason="needs root, util-linux and mount namespaces")


@dataclass
class Stage:
    """A stage of a Dockerfile: its name, its base after build arguments, and its (instruction, value) steps."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """Give the values of one instruction, in order."""
        return [value for found, value in self.steps if found == instruction]

    def environment(self) -> dict[str, str]:
        """Give what the stage's ENV lines set; `${PATH}` is that of the base image."""
        given = {"PATH": f"{PYTHON / 'bin'}:{_SEARCHED}"}
        for value in self.values("ENV"):
            for word in shlex.split(value):
                name, _, text = word.partition("=")
                given[name] = Template(text).substitute(given)
        return given


def read_stages(path: Path) -> dict[str, Stage]:
    """Read the stages of a Dockerfile, in order."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    with path.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    for step in structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "COMMENT":
            continue
        if instruction == "FROM":
            base, _, name = value.split()
            stages[name] = Stage(name, Template(base).substitute(arguments))
        elif not stages:
            name, _, default = value.partition("=")
            arguments[name] = default
        else:
            list(stages.values())[-1].steps.append((instruction, value))
    return stages


def copied(value: str) -> tuple[str | None, list[str], str]:
    """Split a COPY value into the stage it takes from, its sources and its target."""
    words = value.split()
    origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    return origin, words[:-1], words[-1]


def let_through(context: Path = ROOT) -> set[str]:
    """Give the paths of the build context that its .dockerignore leaves in, folders included."""
    lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return set(exclude_paths(str(context), patterns))


class Replay:
    """Builds stages into folders under one folder, each once."""

    def __init__(self, folder: Path, stages: dict[str, Stage]) -> None:
        self._folder = folder
        self._stages = stages
        self._built: dict[str, Path] = {}

    def build(self, name: str) -> Path:
        """Give the root folder of a stage; its base and the stages it copies from are built first."""
        if name in self._built:
            return self._built[name]
        stage, root = self._stages[name], self._folder / name
        if stage.base in self._stages:
            subprocess.run(["cp", "-a", self.build(stage.base), root], check=True)
        else:
            self._lay_base(root)
        workdir = "/"
        for instruction, value in stage.steps:
            if instruction == "WORKDIR":
                workdir = value
                (root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                self._copy(value, root)
            elif instruction == "RUN":
                self._run(value, root, workdir)
        self._built[name] = root
        return root

    def _lay_base(self, root: Path) -> None:
        """Lay what every root needs: this machine's /etc as a copy, empty folders to mount on, the rest as links."""
        for folder in (*_SHARED_FOLDERS, "proc", "tmp/pip", str(PYTHON).lstrip("/")):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "tmp").chmod(0o1777)
        shutil.copytree("/etc", root / "etc", symlinks=True)
        for link in ("bin", "sbin", "lib", "lib64"):
            if Path("/", link).is_symlink():
                (root / link).symlink_to(Path("/", link).readlink())

    def _copy(self, value: str, root: Path) -> None:
        origin, sources, target = copied(value)
        place = root / target.lstrip("/")
        if origin is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            [source] = sources
            subprocess.run(["cp", "-alT", self.build(origin) / source.lstrip("/"), place], check=True)
            return
        visible = let_through()
        for source in sources:
            to_folder = target.endswith("/")
            for path in sorted(p for p in visible if p == source or p.startswith(f"{source}/")):
                if (ROOT / path).is_file():
                    made = place / path if to_folder else place / Path(path).relative_to(source)
                    made.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / path, made)

    def _run(self, value: str, root: Path, workdir: str) -> None:
        line = value.replace("--no-cache-dir ", "")
        mounts = [f"mount --bind {shlex.quote(str(PIP_CACHE))} {shlex.quote(str(root))}/tmp/pip"]
        PIP_CACHE.mkdir(parents=True, exist_ok=True)
        environment = {"PATH": f"{PYTHON / 'bin'}:{_SEARCHED}", "PIP_CACHE_DIR": "/tmp/pip", "HOME": "/root"}
        command = enter(root, ["/bin/sh", "-ec", f"cd {workdir}\n{line}"], mounts=mounts)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"RUN {value}: expected exit status 0, found {done.returncode}: {done.stderr[-3000:]}")


def enter(root: Path, command: list[str], *, mounts: list[str], prefix: tuple[str, ...] = ()) -> list[str]:
    """Give the command that runs another one as process 1 of a container whose root is a stage's folder.

    Args: mounts: shell lines for what is mounted beside /usr, /dev, /proc and Python, the root's own mount first;
        prefix: what comes between the change of root and the command.
    """
    place = shlex.quote(str(root))
    lines = ["set -e", f"mount --bind {place} {place}"]
    for folder in (*_SHARED_FOLDERS, str(PYTHON).lstrip("/")):
        lines.append(f"mount --bind /{folder} {place}/{folder}")
        if folder != "dev":
            lines.append(f"mount -o remount,bind,ro {place}/{folder}")
    lines += [f"mount -t proc proc {place}/proc", *mounts]
    lines.append("exec chroot " + shlex.join([str(root), *prefix, *command]))
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(lines)]


def exec_form(value: str) -> list[str]:
    """Give the words of an exec-form value; anything else is an error."""
    words = json.loads(value)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"expected a list of words, found {value}")
    return words
