#!/usr/bin/env bash
# Makes .venv, system packages included; `make env` and `make env-dev` call it. What is there already stays, and looking at
# it takes a few hundredths of a second.
#
#   ./environment.sh                  what a sweep needs
#   ./environment.sh dev              and what the tests need
#   PYTHON=COMMAND ./environment.sh   with this Python; without, .venv keeps its own, and a new one gets the newest there is
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

extra=${1:-}
wish=${PYTHON:-}
versions=(3.13 3.12 3.11) # newest first; pyproject.toml claims the same ones
range="3.11 to 3.13"
venv=.venv
# FFCV is compiled when it is installed: against OpenCV and TurboJPEG, with a C++ compiler and Python's headers.
libraries=(pkg-config g++ libopencv-dev libturbojpeg0-dev)

fail() {
  printf 'error: %s\n' "$1" >&2
  printf '  %s\n' "${@:2}" >&2
  exit 2
}

has() { command -v "$1" >/dev/null 2>&1; }

# `identity COMMAND` prints a Python's version and the folder of its installation: the same for an environment made with it.
identity() { "$1" -c 'import sys; print("%d.%d in" % sys.version_info[:2], sys.base_prefix)' 2>/dev/null; }

# `usable COMMAND` prints the program behind a command that can make an environment in which FFCV compiles. A name on the
# PATH proves little: pyenv puts one there for versions that are not active, and Debian packs ensurepip and the headers
# apart. It is the installation's program, not that of an active environment, which may be the one to be replaced.
usable() {
  "$1" -c '
import ensurepip, os, sys, sysconfig
assert "%d.%d" % sys.version_info[:2] in sys.argv[1:]
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
print(sys._base_executable)' "${versions[@]}" 2>/dev/null
}

# `choose` prints the Python to take: the one that was asked for, else the newest that is usable.
choose() {
  local version command
  if [ -n "$wish" ]; then
    usable "$wish"
    return
  fi
  for version in "${versions[@]}"; do
    while read -r command; do
      if usable "$command"; then return; fi
    done < <(type -aP "python$version")
  done
  return 1
}

# `packaged` prints the version of Python to install: the newest in the system's package lists, or that of PYTHON=python3.12.
packaged() {
  local version
  for version in "${versions[@]}"; do
    if [ -n "$wish" ] && [ "$wish" != "python$version" ] && [ "$wish" != "/usr/bin/python$version" ]; then continue; fi
    if apt-cache show "python$version-venv" >/dev/null 2>&1 && apt-cache show "python$version-dev" >/dev/null 2>&1; then
      echo "$version"
      return
    fi
  done
  return 1
}

can_compile() { has pkg-config && has g++ && pkg-config --exists opencv4 libturbojpeg; }

# Installs what is missing of the libraries and, where $python is empty, a Python; then sets $python.
install_system_packages() {
  local as_root="" packages=() version=""
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  can_compile || packages+=("${libraries[@]}")
  if ! has apt-get || ! { [ -z "$as_root" ] || $as_root true 2>/dev/null; }; then
    [ -n "$python" ] || packages+=(python3 python3-venv python3-dev)
    fail "FFCV is compiled when it is installed; what that takes is missing, and this user can not install it. Ask for:" \
      "apt-get install ${packages[*]}" \
      "(Debian's and Ubuntu's names; for a Python $range of your own, with its C headers: make PYTHON=COMMAND)" \
      "Then run make again."
  fi
  $as_root apt-get update -qq
  if [ -z "$python" ]; then
    if version=$(packaged); then
      packages+=("python$version" "python$version-venv" "python$version-dev")
    elif [ -n "$wish" ]; then
      fail "PYTHON=$wish can not be used: a Python $range that runs and has ensurepip and its C headers is needed." \
        "Give another one, or leave PYTHON out to take the newest that is there."
    else
      fail "neither this machine nor its package lists have a Python $range with ensurepip and its C headers." \
        "Install one (pyenv, uv and conda can), then run: make PYTHON=/path/to/python"
    fi
  fi
  echo "Installing system packages: ${packages[*]}"
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
  [ -n "$python" ] || python=$(choose) ||
    fail "python$version was installed, but is not on the PATH." "Name it: make PYTHON=/usr/bin/python$version"
}

# Chromium, in which the tests open pages. Those tests are skipped where there is none: it is no reason to go without the
# others. Ubuntu's package of that name only fetches a snap.
install_browser() {
  local as_root="" found
  if has chromium || has chromium-browser || has google-chrome; then return; fi
  [ "$(id -u)" = 0 ] || as_root="sudo -n"
  if has apt-get && { [ -z "$as_root" ] || $as_root true 2>/dev/null; }; then
    $as_root apt-get update -qq || true
    found=$(apt-cache policy chromium 2>/dev/null | awk '/Candidate:/ {print $2}')
    if [ -n "$found" ] && [ "$found" != "(none)" ] && [[ "$found" != *snap* ]]; then
      echo "Installing system packages: chromium"
      DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null && return
    fi
  fi
  echo "There is no Chromium: tests of pages in a browser will be skipped (Debian: apt-get install chromium)"
}

# Why the environment that is there can not stay; empty where there is none, or where it can.
renewal() {
  local made_with made_in
  if [ ! -e $venv ]; then return; fi
  made_with=$(identity $venv/bin/python) || made_with=""
  made_in=$(head -n 1 $venv/.ready 2>/dev/null) || made_in=""
  if [ -z "$made_with" ]; then
    echo "the Python it was made with is gone"
  elif [ ! -e $venv/bin/pip ]; then
    echo "it is not complete"
  elif [ -n "$made_in" ] && [ "$made_in" != "$PWD" ]; then
    echo "it was made in $made_in, a path that its commands contain"
  elif [ -n "$wish" ] && [ "$(identity "$wish")" != "$made_with" ]; then
    echo "it was made with Python $made_with, and PYTHON=$wish is another one"
  fi
}

main() {
  local reason ready state
  reason=$(renewal)
  ready=$venv/.ready${extra:+-$extra}
  state=$(printf '%s\n' "$PWD" && cat pyproject.toml constraints.txt | sha256sum)
  if [ -z "$reason" ] && [ "$(cat "$ready" 2>/dev/null)" = "$state" ]; then return; fi

  python=$venv/bin/python
  if [ -n "$reason" ] || [ ! -e $venv ]; then python=$(choose) || python=""; fi
  if [ -z "$python" ] || ! can_compile; then install_system_packages; fi
  if [ "$python" != $venv/bin/python ]; then
    echo "Making $venv with Python $(identity "$python")${reason:+, since $reason}"
    "$python" -m venv --clear $venv
  fi
  echo "Installing the pinned versions into $venv (about 6.5 GB, some minutes the first time)"
  # pip would compile 17,000 modules one after the other, half of its time. Some are for other Pythons and do not compile.
  $venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
    --editable ".${extra:+[$extra]}"
  $venv/bin/python -m compileall -q -j 0 $venv/lib >/dev/null 2>&1 || true
  if [ "$extra" = dev ]; then install_browser; fi
  printf '%s\n' "$state" >$venv/.ready
  printf '%s\n' "$state" >"$ready"
}

# The tests source this file, for the functions alone.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then main; fi
