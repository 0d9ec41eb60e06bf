#!/usr/bin/env bash
# Sees to it that programs are there: `tests/prerequisites.sh cc cmake npm`. On Debian and Ubuntu root installs what is missing;
# everyone else gets one line that names it. cargo and go are only checked: their versions matter, and distributions lag behind.
set -euo pipefail

rust=1.92 go=1.26

# The Debian package of a program.
package_of() {
  case $1 in
    cc) echo gcc libc6-dev ;;
    c++) echo g++ ;;
    flock) echo util-linux ;;
    npm) echo npm ;;
    ssh-keygen) echo openssh-client ;;
    promtool | prometheus) echo prometheus ;;
    amtool) echo prometheus-alertmanager ;;
    *) echo "$1" ;;
  esac
}

at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$2" ]]; }

check_cargo() {
  local found=none
  command -v cargo >/dev/null && found=$(cargo --version | cut -d ' ' -f 2)
  if [[ $found == none ]] || ! at_least "$found" "$rust"; then
    echo "needs Rust $rust or newer (found: $found); rustup installs it: https://rustup.rs" >&2
    return 1
  fi
}

check_go() {
  local found=none
  command -v go >/dev/null && found=$(GOTOOLCHAIN=local go version | cut -d ' ' -f 3) && found=${found#go}
  if [[ $found == none ]] || ! at_least "$found" "$go"; then
    echo "needs Go $go or newer (found: $found); see https://go.dev/doc/install" >&2
    return 1
  fi
}

# Only stderr speaks: callers may print results.
install() {
  echo "installing $*" >&2
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
  # Some packages would start a service that nobody asked for. Debian's way to say no is this program, answering 101.
  local policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  "${apt[@]}" install --yes --no-install-recommends "$@" >/dev/null 2>&1 && return
  "${apt[@]}" update >&2
  "${apt[@]}" install --yes --no-install-recommends "$@" >&2
}

main() {
  local program packages=() failed=0
  for program in "$@"; do
    case $program in
      cargo) check_cargo || failed=1 ;;
      go) check_go || failed=1 ;;
      *)
        if ! command -v "$program" >/dev/null; then
          read -ra found <<<"$(package_of "$program")"
          packages+=("${found[@]}")
        fi
        ;;
    esac
  done
  if [[ ${#packages[@]} -gt 0 ]]; then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
      install "${packages[@]}"
    else
      echo "needs these packages (Debian's names): ${packages[*]}" >&2
      failed=1
    fi
  fi
  return "$failed"
}

main "$@"
