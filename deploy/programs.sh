#!/usr/bin/env bash
# The programs of a release and of the demo, static. One build for all of them: the same selection gives the same features of the
# shared crates, so that nothing is compiled a second time.
#
#   deploy/programs.sh compile [ARGUMENTS OF CARGO]
#   deploy/programs.sh crates    what that build links, as a tree: a line has depth, crate, version, a bar and the licence
#   deploy/programs.sh folder    where the programs are
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/collect-operator/target}
# Which crates are linked depends on it too.
export RUSTFLAGS='-C target-feature=+crt-static'
triple=$(uname -m)-unknown-linux-gnu
selection=(--locked --target "$triple" -p collect-operator -p collect-worker -p collect-cli -p collect-registry -p collect-s3)

cd "$top"
case ${1:-} in
  compile) cargo build --release "${selection[@]}" "${@:2}" ;;
  crates) cargo tree --offline "${selection[@]}" --edges normal,no-proc-macro --prefix depth --format '{p}|{l}' ;;
  folder) echo "$CARGO_TARGET_DIR/$triple/release" ;;
  *) echo "usage: deploy/programs.sh compile|crates|folder" >&2 && exit 2 ;;
esac
