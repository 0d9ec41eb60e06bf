#!/usr/bin/env bash
# Makes everything that people download of the commit that is checked out: `make release`, docs/operations/release.md. Nothing is sent
# anywhere. The same commit, toolchain and folders give the same bytes.
#
#   VERSION          the version that is meant; default: the one that the tree has
#   DIST             new or empty folder for the files; default: one in the user's cache folder
#   RELEASE_URL      where the files will be downloaded from; default: a placeholder that no download can be made from
#   SIGN_KEY         SSH key that signs the checksums; default: nothing is signed
#   COLLECT_BIN_DIR  programs that are built; default: they are compiled
set -euo pipefail
export LC_ALL=C TZ=UTC

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$top"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collect-operator
arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
platform=linux_$arch
# The images' names are those that the chart has by default.
repo=docker.io/local

# What the tree says of its version, file by file.
cargo_version() { sed -n '/^\[workspace.package\]/,/^\[/ { /^version = / { s/.*"\(.*\)".*/\1/p; q } }' Cargo.toml; }
chart_version() { sed -n "/^$1: / { s/.*: //; s/\"//g; p; q }" charts/collect-operator/Chart.yaml; }
newest_heading() { sed -n '/^## / { s/^## //; p; q }' CHANGELOG.md; }

# refuse WHAT...: says what to change.
refuse() {
  printf 'no release: %s\n' "$@" >&2
  return 1
}

check_tree() {
  local changes
  changes=$(git status --porcelain)
  [[ -z $changes ]] || refuse "these files are not as they were committed; commit them or put them away" "$changes"
}

check_versions() {
  local problems=() heading day
  heading=$(newest_heading)
  day=${heading#"[$version] - "}
  [[ $(cargo_version) == "$version" ]] ||
    problems+=("Cargo.toml has version $(cargo_version), not $version; set workspace.package.version and run cargo update --workspace")
  [[ $(chart_version version) == "$version" ]] ||
    problems+=("charts/collect-operator/Chart.yaml has version $(chart_version version), not $version; set version")
  [[ $(chart_version appVersion) == "$version" ]] ||
    problems+=("charts/collect-operator/Chart.yaml has appVersion $(chart_version appVersion), not $version; set appVersion, and the tags of artifacthub.io/images")
  if [[ $heading == "$day" ]]; then
    problems+=("the topmost heading of CHANGELOG.md is $heading; write ## [$version] - $(date +%F)")
  elif [[ ! $day =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ ]]; then
    problems+=("CHANGELOG.md says that $version is $day; write the day: ## [$version] - $(date +%F)")
  fi
  [[ ${#problems[@]} -eq 0 ]] || refuse "${problems[@]}"
}

check_folder() {
  [[ ! -e $dist ]] || [[ -d $dist && -z $(ls -A "$dist") ]] || refuse "$dist is not empty; remove it, or name another one: DIST=folder"
}

# archive NAME FOLDER FILE...: the same content gives the same bytes.
archive() {
  tar --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" \
    -C "$2" -cf - -- "${@:3}" | gzip -9n >"$out/$1"
}

images() {
  local image
  DIST=$out IMAGE_REPO=$repo IMAGE_TAG=$version COLLECT_BIN_DIR=$programs deploy/build-images.sh operator worker >"$scratch/images"
  for image in operator worker; do mv "$out/$image.oci.tar" "$out/${image}_$platform.oci.tar"; done
}

# What the image writer printed: name, digest, size.
digest() { awk -v name="$repo/$1:$version" '$1 == name { print $2 }' "$scratch/images"; }

chart() {
  local kube
  kube=$(tests/cluster/build.sh kube)
  "$kube" helm package charts/collect-operator --destination "$out" >/dev/null
}

definitions() {
  local file
  for file in crds/*.yaml; do
    echo ---
    cat "$file"
  done >"$out/collect-operator-crds-$version.yaml"
}

monitoring() { archive "collect-operator-monitoring-$version.tar.gz" deploy alerts dashboards; }

plugin() {
  mkdir "$scratch/plugin"
  install -m 755 "$programs/kubectl-collect" "$scratch/plugin/"
  install -m 644 LICENSE "$scratch/plugin/"
  archive "kubectl-collect_$platform.tar.gz" "$scratch/plugin" LICENSE kubectl-collect
}

krew() {
  local file=kubectl-collect_$platform.tar.gz sum
  sum=$(sha256sum "$out/$file" | cut -d ' ' -f 1)
  sed "/^#/d; s|@VERSION@|$version|; s|@ARCH@|$arch|; s|@URL@|$url|; s|@ARCHIVE@|$file|; s|@SHA256@|$sum|" deploy/krew/collect.yaml >"$out/collect.yaml"
}

# sbom NAME PACKAGE PROGRAM [--image IMAGE]
sbom() {
  "$scratch/sbom" --crates "$scratch/crates" --package "$2" --program "$programs/$3" --time "$SOURCE_DATE_EPOCH" \
    --out "$out/$1_$platform.cdx.json" "${@:4}"
}

sboms() {
  (cd deploy/sbom && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -trimpath -buildvcs=false -o "$scratch/sbom" .)
  deploy/programs.sh crates >"$scratch/crates"
  sbom collect-operator collect-operator collect-operator
  sbom collect-worker collect-worker collect-worker
  sbom kubectl-collect collect-cli kubectl-collect
  sbom operator-image collect-operator collect-operator --image "$repo/operator:$version@$(digest operator)"
  sbom worker-image collect-worker collect-worker --image "$repo/worker:$version@$(digest worker)"
}

# The section of this version, without its heading and the blank lines around it.
changes() { awk -v start="## [$version]" '/^## / { inside = index($0, start) == 1; next } inside' CHANGELOG.md | sed -e '/./,$!d'; }

notes() {
  local heading
  heading=$(newest_heading)
  cat <<END >"$out/RELEASE-NOTES.md"
# Collect Operator $version

${heading#*- }, commit $(git rev-parse HEAD).

$(changes)

## Files

Programs and images are for linux/$arch.

| File | What it is |
| --- | --- |
| collect-operator-$version.tgz | the Helm chart |
| collect-operator-crds-$version.yaml | the custom resource definitions alone; the chart has them too |
| collect-operator-monitoring-$version.tar.gz | alert rules, an example for Alertmanager, dashboards; the chart has them too |
| operator_$platform.oci.tar, worker_$platform.oci.tar | the images, as OCI archives |
| kubectl-collect_$platform.tar.gz | the kubectl plugin |
| collect.yaml | its manifest for krew |
| *.cdx.json | bills of materials of programs and images, in CycloneDX |
| SHA256SUMS | checksums of all files |

| Image | Digest |
| --- | --- |
| operator | $(digest operator) |
| worker | $(digest worker) |
END
}

checksums() { (cd "$out" && sha256sum -- * >"$scratch/SHA256SUMS" && mv "$scratch/SHA256SUMS" .); }

sign() {
  if [[ -z ${SIGN_KEY:-} ]]; then
    echo "nothing is signed: SIGN_KEY names no key"
    return
  fi
  ssh-keygen -q -Y sign -f "$SIGN_KEY" -n file "$out/SHA256SUMS"
  echo "signed: SHA256SUMS.sig"
}

main() {
  version=${VERSION:-$(cargo_version)}
  dist=${DIST:-$cache/dist/$version}
  url=${RELEASE_URL:-https://download.example/collect-operator/v$version}
  check_tree
  check_versions
  check_folder
  tests/prerequisites.sh cargo go cc c++ cmake flock git ssh-keygen
  [[ -n ${COLLECT_BIN_DIR:-} ]] || deploy/programs.sh compile
  programs=$(cd "${COLLECT_BIN_DIR:-$(deploy/programs.sh folder)}" && pwd -P)
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
  export SOURCE_DATE_EPOCH
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  out=$scratch/out
  mkdir "$out"
  for step in images chart definitions monitoring plugin krew sboms notes checksums sign; do "$step"; done
  mkdir -p "$dist"
  mv "$out"/* "$dist/"
  (cd "$dist" && stat -c '%10s  %n' -- *)
  [[ -n ${RELEASE_URL:-} ]] || echo "collect.yaml names a placeholder: RELEASE_URL says where the files can be downloaded"
  echo "release $version in $dist"
}

main "$@"
