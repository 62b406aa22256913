#!/usr/bin/env bash
# Installs Larder by its chart on the test bed in LARDER_TESTBED_DIR, with images of this tree, or upgrades it there, and
# says how to reach it. It is the debug build, which the tests use too; LARDER_IMAGE_BINARY names another binary.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
export LARDER_TESTBED_DIR=${LARDER_TESTBED_DIR:-$root/target/testbed}
export KUBECONFIG=$LARDER_TESTBED_DIR/kubeconfig
engines=(redis-6.2 redis-7.0 valkey-8.0 valkey-9.1)
namespace=larder
say() { printf 'testbed-larder: %s\n' "$*" >&2; }

if [ ! -r "$KUBECONFIG" ] || ! scripts/testbed.sh ready; then
    say "no test bed is ready in $LARDER_TESTBED_DIR: make testbed-up starts one"
    exit 1
fi
binary=${LARDER_IMAGE_BINARY:-}
if [ -z "$binary" ]; then
    # The very packages that the tests build, so that they find it built.
    cargo build --locked --package larder --package larder-e2e
    binary=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/larder
fi
scripts/testbed-images.sh "$binary" "${engines[@]}"
PATH=$(scripts/helm.sh):$PATH
kubectl() { scripts/testbed.sh kubectl --kubeconfig "$KUBECONFIG" "$@"; }

kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace" >/dev/null
kubectl label --overwrite namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
# An image keeps its name; that the binary in it is another one is what makes a new pod.
helm upgrade --install larder packaging/helm/larder --namespace "$namespace" --wait --timeout 180s \
    --set image.repository=localhost/larder --set image.tag=testbed --set containerCluster.volumeSize=4GiB \
    --set "containerCluster.engines={$(IFS=, && echo "${engines[*]}")}" \
    --set rbac.confirmLost=true --set rbac.countNodePorts=true \
    --set-string "podAnnotations.larder\.io/binary=$(sha256sum "$binary" | cut -c1-32)" >/dev/null || {
    kubectl --namespace "$namespace" get pods >&2
    kubectl --namespace "$namespace" logs larder-0 --tail 20 >&2 || true
    exit 1
}

shown=$(realpath --relative-base="$root" "$KUBECONFIG") bed=scripts/testbed.sh
[ "$shown" = target/testbed/kubeconfig ] || bed="scripts/testbed.sh --dir $LARDER_TESTBED_DIR"
cat <<END
Larder runs on the test bed, in namespace $namespace, and makes instances there. To reach it from this machine, in one terminal:

  scripts/testbed.sh kubectl --kubeconfig $shown --namespace $namespace port-forward service/larder 7300

and in another:

  export PATH="$(realpath "$(dirname "$binary")"):\$PATH"
  scripts/testbed.sh kubectl --kubeconfig $shown --namespace $namespace get secret larder-admin \\
    -o go-template='{{.data.password | base64decode}}' | larder login --server http://127.0.0.1:7300 --user admin --password-stdin
  larder instance create shop --engine redis-7.0 --architecture cluster --generate-password --wait

Clients run in the test bed's network: $bed exec -- redis-cli -h HOST -p PORT
END
