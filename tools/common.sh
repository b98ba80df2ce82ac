# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What run.sh and test.sh share; source it from the repository's root.

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

has_gpu() { nvidia-smi -L >/dev/null 2>&1 || compgen -G '/dev/nvidia[0-9]*' >/dev/null; }

installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

available() { apt-cache show "$1" >/dev/null 2>&1; }

# need PROVIDES PACKAGE...: pairs of a command (or - for none) and the Debian package to install where it is missing.
# Installs what is missing with apt-get; without root or sudo it says what to type.
need() {
  local missing=()
  while (($#)); do
    if [[ $1 == - ]] || ! command -v "$1" >/dev/null; then
      installed "$2" || missing+=("$2")
    fi
    shift 2
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null ||
    fail "these are missing: ${missing[*]} (Debian's names); this machine has no apt-get, so install their like with its package manager"
  local as_root=()
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null || ! { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
      fail "these packages are missing: ${missing[*]}; as root, run: apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
    fi
    as_root=(sudo)
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -q || printf 'apt-get update failed; trying with the package lists there are\n' >&2
  "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" || fail "apt-get could not install ${missing[*]}"
}

need_to_build() {
  need g++ g++ cmake cmake ninja ninja-build - libcli11-dev - libfmt-dev - nlohmann-json3-dev mpirun openmpi-bin - libopenmpi-dev
  local version
  version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
  [[ $(printf '%s\n' 3.25 "$version" | sort -V | head -n 1) == 3.25 ]] || fail "CMake is $version, but 3.25 or newer is needed"
}

# configure FOLDER CMAKE_ARGUMENT...: for Ninja; what CMake has to say about the library is shown.
configure() {
  local folder=$1
  shift
  say "building in $folder/"
  cmake -S . -B "$folder" -G Ninja "$@" | sed -n 's/^-- chitu: //p' # with GPU kernels or without
}
