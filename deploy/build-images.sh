#!/usr/bin/env bash
# Builds images as OCI archives from static binaries, with no container engine: `deploy/build-images.sh operator worker`.
# For each it prints name, digest, size of the archive and size of what is in it, and fails if it is larger than it may be.
#
#   DIST        where the archives go; default: the user's cache folder
#   IMAGE_REPO  what the images' names begin with; default: docker.io/local
#   IMAGE_TAG   default: dev
#   COLLECT_BIN_DIR  programs that are built; default: they are compiled
set -euo pipefail

# -P: also where deploy/ is a link to that of another folder.
top=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collect-operator
dist=${DIST:-$cache/dist}
repo=${IMAGE_REPO:-docker.io/local}
tag=${IMAGE_TAG:-dev}
programs=${COLLECT_BIN_DIR:-$("$top/deploy/programs.sh" folder)}

# Per image: crate, binary, and the most that the image may hold, in MB (0: no bound).
spec() {
  case $1 in
    operator) echo collect-operator collect-operator 25 ;;
    worker) echo collect-worker collect-worker 40 ;;
    registry) echo collect-registry registry 0 ;;
    s3d) echo collect-s3 s3d 0 ;;
    *) echo "no image $1: operator, worker, registry or s3d" >&2 && return 1 ;;
  esac
}

# Further arguments for the image writer.
extras() {
  [[ $1 == registry ]] || return 0
  local packed=$dist/divisions
  if [[ ! -f $packed ]]; then
    "$programs/registry" pack --data "$("$top/tests/registry/data.sh")" --out "$packed.partial"
    mv "$packed.partial" "$packed"
  fi
  # A path relative to the working directory also holds where a pod is a plain process.
  printf '%s\n' --file "$packed=/data/divisions" --workdir /data --env REGISTRY_DATA=divisions
}

write() {
  local image=$1 crate binary bound file options=()
  read -r crate binary bound <<<"$(spec "$image")"
  file=$programs/$binary
  mapfile -t options < <(extras "$image")
  (cd "$top/deploy/images" && go run . --name "$repo/$image:$tag" --entrypoint "/$binary" --user 65532:65532 \
    --label "org.opencontainers.image.title=$crate" --label org.opencontainers.image.licenses=Apache-2.0 \
    --file "$file=/$binary" "${options[@]}" --out "$dist/$image.oci.tar")
  check_size "$image" "$bound" "$(stat -c %s "$file")"
}

check_size() {
  local image=$1 bound=$2 bytes=$3 archive
  archive=$(stat -c %s "$dist/$image.oci.tar")
  awk -v image="$image" -v bound="$bound" -v bytes="$bytes" -v archive="$archive" 'BEGIN {
    limit = bound ? sprintf(" (at most %d MB)", bound) : ""
    printf "  %s: archive %.1f MB, program %.1f MB%s\n", image, archive / 1e6, bytes / 1e6, limit
    exit bound && bytes > bound * 1e6
  }' || { echo "image $image is larger than it may be" >&2 && return 1; }
}

main() {
  local image
  [[ $# -gt 0 ]] || set -- operator worker
  for image in "$@"; do spec "$image" >/dev/null; done
  "$top/tests/prerequisites.sh" cargo go cc c++ cmake
  mkdir -p "$dist"
  [[ -n ${COLLECT_BIN_DIR:-} ]] || "$top/deploy/programs.sh" compile >&2
  for image in "$@"; do write "$image"; done
  echo "archives in $dist"
}

main "$@"
