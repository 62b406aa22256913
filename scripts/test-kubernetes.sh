#!/usr/bin/env bash
# What needs a Kubernetes: the conformance suite, the chart and the stories, on a test bed of its own (docs/testbed.md), or on
# the cluster of LARDER_TEST_KUBECONFIG. The images there are those of LARDER_TEST_IMAGE and LARDER_TEST_SERVE_IMAGE; a story
# that switches workers off needs LARDER_TEST_BED, the command of the cluster's test bed. Full output is in target/test-logs/.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
logs=target/test-logs
mkdir -p "$logs"
failed=0

cargo build --locked --package larder --package larder-e2e

if [ -z "${LARDER_TEST_KUBECONFIG:-}" ]; then
    # Short: sockets of the test bed are in it, and their paths must fit.
    work=$(mktemp -d /tmp/l-XXXXXX)
    bed=$work/bed
    trap 'scripts/testbed.sh --dir "$bed" down >/dev/null || true; cp -r "$bed/logs" "$logs/testbed" 2>/dev/null || true; rm -rf "$work"' EXIT
    rm -rf "$logs/testbed"
    # What the tests use: the suite and the stories are about pods, not about engines; what servers announce to
    # clients outside differs between these three.
    LARDER_IMAGE_ENGINES="redis-6.2 redis-7.0 valkey-8.0" LARDER_IMAGE_TAG=testbed \
        LARDER_IMAGE_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/larder scripts/images.sh "$work/images"
    scripts/testbed.sh --dir "$bed" up --workers 3 --zones 3 --audit
    for image in "$work"/images/*.tar; do scripts/testbed.sh --dir "$bed" image load "$image"; done
    export LARDER_TEST_KUBECONFIG=$bed/kubeconfig
    export LARDER_TEST_BED="$root/scripts/testbed.sh --dir $bed"
    export LARDER_TEST_IMAGE="localhost/larder-{engine}:testbed"
    export LARDER_TEST_SERVE_IMAGE=localhost/larder:testbed
    export LARDER_TEST_AUDIT=$bed/logs/audit.log
fi

check() { # name command...
    local name=$1 begin=$SECONDS
    shift
    if "$@" >"$logs/$name.log" 2>&1; then
        printf 'ok   %-22s %4d s\n' "$name" $((SECONDS - begin))
    else
        printf 'FAIL %-22s %4d s; the end of %s/%s.log:\n' "$name" $((SECONDS - begin)) "$logs" "$name"
        tail -n 60 "$logs/$name.log"
        failed=1
    fi
}

check kubernetes-conformance cargo test --locked -p larder-cluster-k8s --test kubernetes
check kubernetes-chart scripts/test-helm.sh
if [ -n "${LARDER_TEST_BED:-}" ]; then
    check kubernetes-stories cargo test --locked -p larder-e2e --test kubernetes -- --test-threads=1
    # One after the other: each switches off a worker of its own choice.
    check kubernetes-exposure cargo test --locked -p larder-e2e --test kubernetes_exposure -- --test-threads=1
else
    printf 'SKIP %-22s LARDER_TEST_BED is not set\n' kubernetes-stories kubernetes-exposure
fi
exit "$failed"
