#!/usr/bin/env bash
# From nothing to a ValidationReport: builds what is needed, starts a local Kubernetes, installs the operator, collects the villages
# of one province of China (SCALE=full: of all) from an HTTP API into an object store, and shows what came of it.
#
#   SCALE         province (default) or full
#   NODE          real (root on Linux) or process; CLUSTER: name of the local cluster
#   UNTIL         installed: end when operator, source and sink are ready, and collect nothing
#   KUBE_CONTEXT  use this context of your kubeconfig instead of a local cluster, and only it. It needs OPERATOR_IMAGE,
#                 WORKER_IMAGE, REGISTRY_IMAGE and S3D_IMAGE: name:tag of images that the cluster can pull
#
# A second run collects anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export DIST=${DIST:-${XDG_CACHE_HOME:-$HOME/.cache}/collect-operator/dist}
cluster=${CLUSTER:-demo} node=${NODE:-process} context=${KUBE_CONTEXT:-}
release=collect-operator system=collect-system namespace=demo
case ${SCALE:-province} in
  province) sample=deploy/samples/villages-44.yaml task=guangdong ;;
  full) sample=deploy/samples/villages.yaml task=villages ;;
  *) echo "SCALE is province or full, not $SCALE" >&2 && exit 2 ;;
esac
times=() background=() scratch=$(mktemp -d)

end_background() {
  local pid
  for pid in "${background[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  background=()
}

clean_up() {
  end_background
  rm -rf "$scratch"
}
trap clean_up EXIT

# stage NAME COMMAND...: says what is done and remembers how long it took.
stage() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  times+=("$(printf '  %-44s %5d s' "$name" $((SECONDS - start)))")
}

# What a person would type, and what it prints.
show() {
  printf '\n$ %s\n' "$*"
  "$@"
}

kubectl() { command kubectl ${context:+--context "$context"} "$@"; }
# A process of its own, which clean_up can end.
kubectl_in_background() {
  (exec kubectl ${context:+--context "$context"} "$@") &
  background+=("$!")
}
helm() { command helm ${context:+--kube-context "$context"} "$@"; }

prerequisites() { tests/prerequisites.sh cargo go cc c++ cmake flock npm openssl curl; }

kubernetes_programs() {
  local kube
  if [[ -n $context ]] && command -v kubectl >/dev/null && command -v helm >/dev/null; then return; fi
  kube=$(tests/cluster/build.sh kube)
  ln -s "$kube" "$scratch/kubectl"
  ln -s "$kube" "$scratch/helm"
  PATH=$scratch:$PATH
}

images() { deploy/build-images.sh operator worker registry s3d; }

start_cluster() {
  tests/cluster/cluster up --name "$cluster" --node "$node"
  eval "$(tests/cluster/cluster env --name "$cluster")"
}

load_images() {
  local image
  for image in operator worker registry s3d; do
    tests/cluster/cluster load-image --name "$cluster" "$DIST/$image.oci.tar"
  done
}

# A port of this machine that nobody listens on: pods of a process node share the machine's.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
  done
}

# On a process node there are no Services; everything is found on ports of this machine. They are kept as long as the
# cluster is.
local_ports() {
  local name file
  file=$(dirname "$KUBECONFIG")/demo-ports
  if [[ ! -f $file ]]; then
    for name in registry s3 s3_control endpoint http; do echo "${name}_port=$(free_port)"; done >"$file"
  fi
  # shellcheck source=/dev/null
  source "$file"
}

# Manifests as they fit the cluster: standard output.
fitted() {
  if [[ -n $context ]]; then
    sed -e "s|docker.io/local/registry:dev|$REGISTRY_IMAGE|" -e "s|docker.io/local/s3d:dev|$S3D_IMAGE|" "$1"
  elif [[ $node == process ]]; then
    # shellcheck disable=SC2154
    sed -e "s|registry.demo.svc|127.0.0.1:$registry_port|" -e "s|s3.demo.svc:9000|127.0.0.1:$s3_port|" \
      -e "s|\b8090\b|$registry_port|" -e "s|\b9000\b|$s3_port|" -e "s|\b9001\b|$s3_control_port|" "$1"
  else
    cat "$1"
  fi
}

install_operator() {
  local operator=${OPERATOR_IMAGE:-docker.io/local/operator:dev} worker=${WORKER_IMAGE:-docker.io/local/worker:dev} values=()
  values+=(--set "image.repository=${operator%:*},image.tag=${operator##*:}")
  values+=(--set "worker.image.repository=${worker%:*},worker.image.tag=${worker##*:}")
  if [[ -z $context ]]; then
    values+=(--set image.pullPolicy=Never --set worker.image.pullPolicy=Never)
    # The tag stays the same when the program changes; this starts it again then.
    values+=(--set "podAnnotations.image=$(sha256sum "$DIST/operator.oci.tar" | cut -c 1-16)")
  fi
  if [[ -z $context && $node == process ]]; then
    # shellcheck disable=SC2154
    values+=(--set "endpoint.port=$endpoint_port,endpoint.url=https://127.0.0.1:$endpoint_port" \
      --set "endpoint.tls.extraSANs={127.0.0.1}" --set "http.port=$http_port")
  fi
  helm upgrade --install "$release" charts/collect-operator --namespace "$system" --create-namespace "${values[@]}" --wait --timeout 3m
}

install_source_and_sink() {
  local manifest
  for manifest in namespace registry s3; do fitted "tests/demo/manifests/$manifest.yaml" | kubectl apply -f -; done
  kubectl -n "$namespace" rollout status deployment/registry deployment/s3 --timeout=3m
}

forget_earlier_run() {
  kubectl -n "$namespace" delete collecttask "$task" --ignore-not-found --timeout=2m
  kubectl -n "$namespace" wait --for=delete collectshards -l "collect.dev/root=$task" --timeout=2m
}

# Resident memory of the operator in bytes, from its own metrics; 0 if it does not answer.
operator_memory() {
  local metrics
  if [[ -z $context && $node == process ]]; then
    metrics=$(curl -sf --max-time 2 "http://127.0.0.1:$http_port/metrics") || true
  else
    metrics=$(kubectl get --raw "/api/v1/namespaces/$system/services/$release:metrics/proxy/metrics" --request-timeout=2s 2>/dev/null) || true
  fi
  awk '$1 == "process_resident_memory_bytes" {value = $2} END {printf "%d\n", value}' <<<"$metrics"
}

# Which of the conditions that end a task is true.
ended() {
  kubectl -n "$namespace" get collecttask "$task" \
    -o 'jsonpath={range .status.conditions[?(@.status=="True")]}{.type}{"\n"}{end}' | grep -xE 'Complete|Failed' || true
}

collect() {
  local memory end='' deadline=$((SECONDS + 1200))
  idle_memory=$(operator_memory) peak_memory=0
  printf '\n$ kubectl -n %s apply -f %s\n' "$namespace" "$sample"
  fitted "$sample" | kubectl -n "$namespace" apply -f -
  printf '\n$ kubectl -n %s get collecttasks -w\n' "$namespace"
  kubectl_in_background -n "$namespace" get collecttasks -w
  until [[ -n $end ]]; do
    sleep 1
    [[ $SECONDS -lt $deadline ]] || { echo "not done after 20 minutes" >&2 && break; }
    memory=$(operator_memory)
    ((memory <= peak_memory)) || peak_memory=$memory
    end=$(ended)
  done
  sleep 1 # the watches print their last lines
  end_background
  if [[ $end != Complete ]]; then
    show kubectl -n "$namespace" describe collecttask "$task"
    kubectl -n "$system" logs "deployment/$release" --tail=50 || true
    return 1
  fi
}

show_result() {
  local run
  run=$(kubectl -n "$namespace" get collecttask "$task" -o 'jsonpath={.status.run}')
  show kubectl -n "$namespace" get collecttasks
  printf '\n$ kubectl -n %s get collectshards | head -6\n' "$namespace"
  kubectl -n "$namespace" get collectshards -l "collect.dev/root=$task" >"$scratch/shards"
  head -6 "$scratch/shards"
  echo "… $(($(wc -l <"$scratch/shards") - 1)) in all"
  show kubectl -n "$namespace" get validationreport "$task-r$run"
  kubectl -n "$namespace" get validationreport "$task-r$run" -o 'jsonpath={.status.coverage}{"\n"}'
  show_files "$run"
}

# What a reader of the object store finds.
show_files() {
  local base user password folder
  if [[ -z $context && $node == process ]]; then
    base=http://127.0.0.1:$s3_port
  else
    s3_port=$(free_port)
    kubectl_in_background -n "$namespace" port-forward service/s3 "$s3_port:9000" >/dev/null
    base=http://127.0.0.1:$s3_port
    curl -s -o /dev/null --retry 20 --retry-delay 1 --retry-connrefused "$base"
  fi
  user=$(kubectl -n "$namespace" get secret lake -o 'go-template={{index .data "access_key_id" | base64decode}}')
  password=$(kubectl -n "$namespace" get secret lake -o 'go-template={{index .data "secret_access_key" | base64decode}}')
  # Older curls sign without this header, which S3 asks for.
  get() {
    curl -sSf --aws-sigv4 aws:amz:us-east-1:s3 --header 'x-amz-content-sha256: UNSIGNED-PAYLOAD' \
      --user "$user:$password" "$base/lake/$task/$1"
  }
  printf '\ns3://lake/%s/_current.json\n' "$task"
  get _current.json >"$scratch/current"
  echo "$(<"$scratch/current")"
  folder=$(grep -oE 'runs/[^/"]+' "$scratch/current" | head -n 1)
  printf '\ns3://lake/%s/%s/_files.ndjson\n' "$task" "$folder"
  get "$folder/_files.ndjson" >"$scratch/files"
  head -n 3 "$scratch/files" | sed -E 's/^(.{130}).+/\1…/'
  echo "… $(wc -l <"$scratch/files") files, $(grep -oE '"rows": *[0-9]+' "$scratch/files" | grep -oE '[0-9]+$' | awk '{n += $1} END {print n}') rows"
}

show_figures() {
  local worker_memory
  worker_memory=$(kubectl -n "$namespace" get collectshards -l "collect.dev/root=$task" \
    -o 'jsonpath={range .items[*]}{range .status.attempts[*]}{.peakMemoryBytes}{"\n"}{end}{end}' | sort -n | tail -n 1)
  awk -v idle="$idle_memory" -v peak="$peak_memory" -v worker="${worker_memory:-0}" 'BEGIN {
    printf "  operator memory: %.1f MiB idle, at most %.1f MiB during the run\n", idle / 1048576, peak / 1048576
    printf "  worker memory: at most %.1f MiB\n", worker / 1048576
  }'
  if [[ -z $context ]]; then
    (cd "$DIST" && du -b operator.oci.tar worker.oci.tar) | awk '{printf "  image %s: %.1f MB\n", $2, $1 / 1e6}'
  fi
  printf '%s\n' "${times[@]}"
}

farewell() {
  echo
  if [[ -n $context ]]; then
    echo "Look around: kubectl --context $context -n $namespace get collect"
    echo "Remove it:   kubectl --context $context delete namespace $namespace; helm --kube-context $context -n $system uninstall $release"
  else
    echo "The cluster stays up. Look around:"
    echo "  eval \"\$(tests/cluster/cluster env --name $cluster)\""
    echo "  kubectl -n $namespace get collect; kubectl -n $namespace describe ct $task; kubectl explain collecttask.spec.decompose"
    echo "Take it down: make cluster-down$([[ $cluster == demo ]] || echo " CLUSTER=$cluster")"
  fi
}

main() {
  stage "prerequisites" prerequisites
  stage "Kubernetes programs" kubernetes_programs
  if [[ -n $context ]]; then
    : "${OPERATOR_IMAGE:?}" "${WORKER_IMAGE:?}" "${REGISTRY_IMAGE:?}" "${S3D_IMAGE:?}"
  else
    stage "images" images
    stage "cluster $cluster, $node node" start_cluster
    stage "load images" load_images
    [[ $node != process ]] || local_ports
  fi
  stage "install the operator" install_operator
  stage "install source and sink" install_source_and_sink
  [[ ${UNTIL:-} != installed ]] || return 0
  stage "forget an earlier run" forget_earlier_run
  stage "collect" collect
  stage "result" show_result
  printf '\n== figures\n'
  show_figures
  farewell
}

main "$@"
