#!/usr/bin/env bash
# Every check that needs no cluster, all of them even if one fails; `make lint`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
failed=()

# check NAME COMMAND...: prints name and time, and the output only if it fails.
check() {
  local name=$1 start=$SECONDS log
  shift
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then
    printf '  ok      %-44s %4d s\n' "$name" $((SECONDS - start))
  else
    printf '  FAILED  %-44s %4d s\n' "$name" $((SECONDS - start))
    sed 's/^/    /' "$log"
    failed+=("$name")
  fi
  rm -f "$log"
}

go_is_formatted() {
  local ugly
  ugly=$(gofmt -l tests/cluster tests/charts tests/dashboards tests/docs tests/otel tests/release deploy/images deploy/sbom)
  [[ -z $ugly ]] || { echo "run make fmt: $ugly" && return 1; }
}

go_vet() {
  local folder
  for folder in tests/cluster tests/charts tests/dashboards tests/docs tests/otel tests/release deploy/images deploy/sbom; do
    (cd "$folder" && CGO_ENABLED=0 GOTOOLCHAIN=local go vet -trimpath -tags grpcnotrace ./...) || return
  done
}

crds_are_current() { cargo run --quiet --locked -p collect-api --example crds -- crds --check; }
docs_are_current() { cargo run --quiet --locked -p collect-core --example tables -- docs/concepts --check; }
chart_has_the_crds() { diff -r crds charts/collect-operator/files/crds || { echo "run make crds" && return 1; }; }

scripts_are_clean() {
  local scripts
  mapfile -t scripts < <(git ls-files --cached --others --exclude-standard | xargs -d '\n' grep -lsE '^#!.*\b(ba)?sh$' --)
  shellcheck "${scripts[@]}"
}

helm_lint() {
  local kube
  kube=$(tests/cluster/build.sh kube)
  "$kube" helm lint --strict charts/collect-operator
}

main() {
  tests/prerequisites.sh cargo go cc c++ cmake flock shellcheck promtool amtool
  check "rust is formatted" cargo fmt --all --check
  check "clippy has nothing to say" cargo clippy --workspace --all-targets --test real --test chaos_real --test operate --test scale --test rights --locked -- -D warnings
  check "go is formatted" go_is_formatted
  check "go vet has nothing to say" go_vet
  check "scripts are clean to shellcheck" scripts_are_clean
  check "crds/ is current" crds_are_current
  check "docs/concepts is current" docs_are_current
  check "docs/ names only what exists" make docs-check
  check "the chart has the same CRDs" chart_has_the_crds
  check "dashboards, alerts and runbooks fit" make dashboards-check
  check "dependencies are allowed by deny.toml" make cargo-deny
  check "the chart is clean to helm lint" helm_lint
  check "the chart renders as it should" make chart-test
  if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'lint failed: %s\n' "${failed[@]}"
    return 1
  fi
}

main "$@"
