#!/usr/bin/env bash
# Every test, all of them even if one fails; `make test`. Ends with one line: N passed, N failed, N skipped.
#
# What a machine can't run is skipped with its reason; with CI=true nothing may be skipped.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/collect-operator
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
log=$(mktemp)
# Where each test cluster leaves what its operators asked for.
COLLECT_E2E_RIGHTS=$(mktemp -d)
export COLLECT_E2E_RIGHTS
trap 'rm -rf "$log" "$COLLECT_E2E_RIGHTS"' EXIT
times=() broken=0

# stage NAME COMMAND...: shows the output as it comes, and keeps it to count.
stage() {
  local name=$1 start=$SECONDS result=ok
  shift
  echo "== $name"
  "$@" 2>&1 | tee -a "$log" || { result=FAILED && broken=$((broken + 1)); }
  times+=("$(printf '  %-44s %5d s  %s' "$name" $((SECONDS - start)) "$result")")
}

go_tests() {
  local folder status=0
  for folder in deploy/images deploy/sbom tests/cluster; do
    (cd "$folder" && CGO_ENABLED=0 GOTOOLCHAIN=local go test -v -trimpath -tags grpcnotrace ./...) || status=1
  done
  return "$status"
}

# The programs as they are shipped, static, the kubectl plugin and the demo's among them; sizes of images are checked on the way.
images() { deploy/build-images.sh operator worker registry s3d; }

# Each end-to-end binary brings up the cluster that it needs and takes it down again; it runs the programs as they are shipped. Most of them
# wait most of the time, so those on a real node and the one with thousands of shards run beside the others.
rust_tests() {
  local beside others=(--test real --test chaos_real --test operate --test scale) others_pid status=0
  COLLECT_BIN_DIR=$CARGO_TARGET_DIR/$(uname -m)-unknown-linux-gnu/release
  RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}
  export COLLECT_BIN_DIR RUST_TEST_THREADS
  cargo test --workspace --locked --no-run && cargo test --workspace --locked "${others[@]}" --no-run || return
  beside=$(mktemp)
  cargo test --workspace --locked --no-fail-fast "${others[@]}" >"$beside" 2>&1 &
  others_pid=$!
  cargo test --workspace --locked --no-fail-fast || status=1
  wait "$others_pid" || status=1
  cat "$beside"
  rm "$beside"
  return "$status"
}

# What the operators of all these clusters asked for, against what the chart grants.
rights() { cargo test --workspace --locked --test rights; }

# Sums cargo's `test result:` lines, go's verdicts and our own SKIPPED lines; a stage that broke without a failed test counts as one.
summary() {
  awk -v broken="$broken" '
    /^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) passed += $(i-1); if ($i ~ /^failed/) failed += $(i-1); if ($i ~ /^ignored/) skipped += $(i-1) } }
    /^ *--- PASS:/ { passed++ }
    /^ *--- FAIL:/ { failed++ }
    /^ *--- SKIP:/ { skipped++ }
    /^SKIPPED / { skipped++ }
    END {
      if (broken > failed) failed = broken
      printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
      exit failed > 0 || passed == 0
    }' "$log"
}

main() {
  tests/prerequisites.sh cargo go cc c++ cmake flock git make npm openssl promtool ssh-keygen
  stage "tests of the test cluster and image writer" go_tests
  stage "images" images
  stage "release" make release-test
  stage "unit, property, API and end-to-end tests" rust_tests
  stage "rights granted are rights used" rights
  echo "== summary"
  printf '%s\n' "${times[@]}"
  grep -E '^(SKIPPED|FIGURE) ' "$log" || true
  summary
}

main "$@"
