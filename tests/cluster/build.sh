#!/usr/bin/env bash
# Builds the two programs of a test cluster once and prints their paths, one a line: kube (every Kubernetes component; minutes when built
# from nothing) and cluster (the launcher; seconds). They are kept in the user's cache folder, keyed by the hash of their
# sources, so that later calls only look them up. `build.sh kube` or `build.sh cluster` builds and prints that one alone.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collect-operator
version=v1.37.1

ldflags() {
  printf -- '-s -w'
  local package
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf ' -X %s.%s' "$package" "gitVersion=$version" "$package" gitMajor=1 "$package" gitMinor=37 \
      "$package" gitTreeState=clean "$package" gitCommit=test "$package" buildDate=2026-01-01T00:00:00Z
  done
}

# The sources of a program, in a fixed order. Tests do not change it.
sources() {
  case $1 in
    kube) printf '%s\n' go.sum cmd/kube/*.go ;;
    cluster) find go.sum cmd/cluster cmd/pause image node ../../deploy/images -type f ! -name '*_test.go' | LC_ALL=C sort ;;
  esac
}

compile() {
  CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -trimpath -tags grpcnotrace -ldflags "$(ldflags)" -o "$2" "./cmd/$1"
}

# The sandbox image of real nodes lies beside the launcher.
pause_image() {
  compile pause "$1/pause"
  (cd ../../deploy/images && go run . --name docker.io/local/pause:dev --entrypoint /pause --file "$1/pause=/pause" --out "$1/pause.tar" >/dev/null)
}

build() {
  local name=$1 hash dir
  hash=$(cd "$here" && sources "$name" | xargs -d '\n' cat -- | sha256sum | cut -c1-16)
  dir=$cache/$name/$hash
  if [[ ! -x $dir/$name ]]; then
    mkdir -p "$dir"
    (
      # Two callers at once must not build the same thing twice.
      flock 9
      [[ -x $dir/$name ]] && exit 0
      echo "building $name into $dir$([[ $name == kube ]] && echo ' (about ten minutes the first time)')" >&2
      cd "$here"
      compile "$name" "$dir/.$name.partial"
      [[ $name == cluster ]] && pause_image "$dir"
      mv "$dir/.$name.partial" "$dir/$name"
    ) 9>"$dir/.lock"
  fi
  echo "$dir/$name"
}

[[ $# -gt 0 ]] || set -- kube cluster
for name in "$@"; do build "$name"; done
