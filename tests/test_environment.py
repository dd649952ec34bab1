"""`environment.sh` chooses a Python, keeps `.venv` or renews it, and says what is missing. Pythons and apt are toys."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("bash", "cat", "chmod", "cp", "dirname", "head", "mkdir", "sha256sum", "touch")

TOY_PYTHON = """\
case "$1 $2" in
  "-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; touch "$4/bin/pip" ;;
  "-m pip") echo "${@: -1}" >>installed ;;
  "-m compileall") ;;
  *ensurepip*) echo "$0" ;;
  *) echo "VERSION in /toys" ;;
esac
"""
TOY_APT = """\
if [ "$1" = install ]; then
  echo "${@: -3}" >>installed
  for package in "$@"; do if [ -e "toys/$package" ]; then cp "toys/$package" bin/; fi; done
fi
"""


class Project:
    """A folder with the script and what it reads. Its `bin` is the whole PATH: a shell's tools, and a test's toys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("environment.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"no {tool}")
        self.command("pkg-config")
        self.command("g++")
        self.command("id", "echo 0")

    def command(self, name: str, script: str = "exit 0", folder: str = "bin") -> Path:
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return path

    def python(self, version: str, folder: str = "bin") -> Path:
        return self.command(f"python{version}", TOY_PYTHON.replace("VERSION", version), folder)

    def bash(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """What a script of bash prints that has the functions of `environment.sh`."""
        return subprocess.run(
            ["bash", "-c", f"source ./environment.sh; {script}"],
            cwd=self.folder,
            env={"PATH": str(self.bin), **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def make(self, extra: str = "", **variables: str) -> str:
        """Make the environment, which must succeed, and give what is printed."""
        done = self.bash(f"extra={extra}; main", **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, **variables: str) -> str:
        done = self.bash("main", **variables)
        assert done.returncode == 2, (done.stdout, done.stderr)
        return done.stderr

    def installed(self) -> list[str]:
        """What pip and apt were told to install so far."""
        return (self.folder / "installed").read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_newest_python_is_taken_that_runs(project: Project) -> None:
    for version in ("3.10", "3.11", "3.12"):
        project.python(version)
    project.command("python3.13", "echo 'pyenv: python3.13: command not found' >&2; exit 127")
    assert project.bash("choose").stdout == f"{project.bin}/python3.12\n"
    assert "Making .venv with Python 3.12" in project.make()


def test_a_working_python_is_found_behind_one_that_does_not_run(project: Project) -> None:
    project.command("python3.13", "exit 127")
    behind = project.python("3.13", folder="usr")
    project.python("3.12")
    assert project.bash("choose", PATH=f"{project.bin}:{behind.parent}").stdout == f"{behind}\n"


def test_this_python_is_usable_and_an_older_one_is_not(project: Project) -> None:
    assert project.bash(f"usable {shlex.quote(sys.executable)}").returncode == 0
    assert project.bash(f"versions=(3.10); usable {shlex.quote(sys.executable)}").returncode != 0


@pytest.mark.parametrize(
    ("module", "source"),
    [("ensurepip", "raise ImportError"), ("sysconfig", "get_path = lambda name: '/nowhere'")],
    ids=["ensurepip", "headers"],
)
def test_a_python_without_ensurepip_or_headers_is_not_usable(project: Project, module: str, source: str) -> None:
    (project.folder / f"{module}.py").write_text(source)
    assert project.bash(f"usable {shlex.quote(sys.executable)}", PYTHONPATH=str(project.folder)).returncode != 0


def test_what_is_there_is_left_as_it_is(project: Project) -> None:
    project.python("3.12")
    project.make()
    project.python("3.13")
    assert project.make() == ""
    assert project.installed() == ["."]


def test_the_tools_of_the_tests_are_installed_only_when_asked_for(project: Project) -> None:
    project.python("3.12")
    project.make()
    project.make("dev")
    assert project.make("dev") == project.make() == ""
    assert project.installed() == [".", ".[dev]"]


def test_changed_pins_are_installed_into_the_same_environment(project: Project) -> None:
    project.python("3.12")
    project.make("dev")
    with (project.folder / "constraints.txt").open("a") as pins:
        pins.write("another==1\n")
    assert "Making" not in project.make()
    project.make("dev")
    assert project.installed() == [".[dev]", ".", ".[dev]"]


def test_another_python_makes_the_environment_anew_and_says_so(project: Project) -> None:
    project.python("3.12")
    project.python("3.11")
    project.make()
    said = project.make(PYTHON="python3.11")
    assert (
        "Python 3.11 in /toys, since it was made with Python 3.12 in /toys, and PYTHON=python3.11 is another one"
        in said
    )
    assert project.make(PYTHON="python3.11") == project.make() == ""


def test_an_environment_whose_python_is_gone_is_made_anew(project: Project) -> None:
    project.python("3.12")
    project.make()
    (project.folder / ".venv" / "bin" / "python").unlink()
    assert "Making .venv with Python 3.12 in /toys, since the Python it was made with is gone" in project.make()


def test_an_environment_that_was_moved_is_made_anew(project: Project, tmp_path: Path) -> None:
    project.python("3.12")
    project.make()
    (project.folder / ".venv" / ".ready").write_text("/elsewhere\n")
    assert "since it was made in /elsewhere, a path that its commands contain" in project.make()


def test_an_environment_without_pip_is_made_anew(project: Project) -> None:
    project.python("3.12")
    project.make()
    (project.folder / ".venv" / "bin" / "pip").unlink()
    assert "since it is not complete" in project.make()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_systems_own_python_is_installed_where_none_is_there(project: Project, version: str) -> None:
    project.command("apt-get", TOY_APT)
    project.command("apt-cache", f'[[ "$2" == python{version}-* ]]')
    project.python(version, folder="toys")
    assert f"Making .venv with Python {version}" in project.make()
    assert project.installed() == [f"python{version} python{version}-venv python{version}-dev", "."]


def test_headers_and_ensurepip_of_a_python_that_was_named_are_installed(project: Project) -> None:
    project.command("apt-get", TOY_APT)
    project.command("apt-cache", "exit 0")
    project.command("python3.12", "exit 1")
    project.python("3.13")
    project.python("3.12", folder="toys")
    assert "Making .venv with Python 3.12" in project.make(PYTHON="python3.12")


def test_a_system_without_a_python_to_install_is_told_so(project: Project) -> None:
    project.command("apt-get", TOY_APT)
    project.command("apt-cache", "exit 1")
    assert "neither this machine nor its package lists have a Python 3.11 to 3.13" in project.refusal()


def test_a_python_that_can_not_be_used_is_refused_by_its_name_and_leaves_the_environment(project: Project) -> None:
    project.command("apt-get", TOY_APT)
    project.command("apt-cache", "exit 0")
    project.python("3.12")
    project.make()
    assert "PYTHON=/opt/python2 can not be used" in project.refusal(PYTHON="/opt/python2")
    assert project.make() == ""


def test_a_user_who_may_not_install_is_told_what_to_ask_for(project: Project) -> None:
    project.command("apt-get", TOY_APT)
    project.command("id", "echo 1000")
    (project.bin / "g++").unlink()
    python = "python3 python3-venv python3-dev"
    assert f"apt-get install pkg-config g++ libopencv-dev libturbojpeg0-dev {python}\n" in project.refusal()
    project.python("3.13")
    assert "apt-get install pkg-config g++ libopencv-dev libturbojpeg0-dev\n" in project.refusal()


def test_the_versions_that_are_tried_are_those_that_the_package_claims(project: Project) -> None:
    claims = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = project.bash('echo "${versions[@]}"').stdout.split()
    newest, oldest = versions[0], versions[-1]
    minor = int(newest.removeprefix("3."))
    assert claims["requires-python"] == f">={oldest},<3.{minor + 1}"
    named = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in claims["classifiers"]]
    assert [match[1] for match in named if match] == versions[::-1]
    assert project.bash('echo "$range"').stdout == f"{oldest} to {newest}\n"
