#!/usr/bin/env bash
# What needs a Kubernetes: the conformance suite, the chart and the stories, on a test bed of its own (docs/testbed.md), or on
# the cluster of LARDER_TEST_KUBECONFIG. Where that is the kubeconfig of a test bed that runs, it is used with everything
# and the images are loaded into it. Elsewhere the images are those of LARDER_TEST_IMAGE and LARDER_TEST_SERVE_IMAGE, and
# what needs LARDER_TEST_BED, the command of a test bed, is skipped. Full output is in target/test-logs/.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
logs=target/test-logs
mkdir -p "$logs"
failed=0

cargo build --locked --package larder --package larder-e2e

bed=
if [ -z "${LARDER_TEST_KUBECONFIG:-}" ]; then
    # Short: sockets of the test bed are in it, and their paths must fit.
    work=$(mktemp -d /tmp/l-XXXXXX)
    bed=$work/bed
    trap 'scripts/testbed.sh --dir "$bed" down >/dev/null || true; cp -r "$bed/logs" "$logs/testbed" 2>/dev/null || true; rm -rf "$work"' EXIT
    rm -rf "$logs/testbed"
    scripts/testbed.sh --dir "$bed" up --workers 3 --zones 3 --audit
    export LARDER_TEST_KUBECONFIG=$bed/kubeconfig
else
    LARDER_TEST_KUBECONFIG=$(realpath "$LARDER_TEST_KUBECONFIG")
    bed=$(dirname "$LARDER_TEST_KUBECONFIG")
    if [ -z "${LARDER_TEST_BED:-}" ] && [ -S "$bed/control.sock" ]; then scripts/testbed.sh --dir "$bed" ready; else bed=; fi
fi
if [ -n "$bed" ]; then
    # What the tests use: the suite and the stories are about pods, not about engines; what servers announce to
    # clients outside differs between these three.
    LARDER_TESTBED_DIR=$bed scripts/testbed-images.sh "$(realpath "${CARGO_TARGET_DIR:-target}")/debug/larder" redis-6.2 redis-7.0 valkey-8.0
    export LARDER_TEST_BED="$root/scripts/testbed.sh --dir $bed"
    export LARDER_TEST_IMAGE="localhost/larder-{engine}:testbed"
    export LARDER_TEST_SERVE_IMAGE=localhost/larder:testbed
    if [ -e "$bed/logs/audit.log" ]; then export LARDER_TEST_AUDIT=$bed/logs/audit.log; fi
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
