#!/usr/bin/env bash
# What needs a Kubernetes: the conformance suite, the chart and the stories, on a test bed of its own (docs/testbed.md), or on
# the cluster of LARDER_TEST_KUBECONFIG. Where that is the kubeconfig of a test bed that runs, it is used with everything
# and the images are loaded into it. Elsewhere the images are those of LARDER_TEST_IMAGE and LARDER_TEST_SERVE_IMAGE, and
# what needs LARDER_TEST_BED, the command of a test bed, is skipped. Full output is in target/test-logs/.
#
# `test-kubernetes.sh short` is the part that `make test` runs: each architecture created, used, killed and deleted, and one
# worker lost. `test-kubernetes.sh figures [ARGUMENTS]` measures starts and gaps there (tests/e2e/src/bin/figures.rs), with a
# release binary.
set -euo pipefail
# What ends it without a word of its own is told.
trap 'echo "test-kubernetes: line $LINENO failed" >&2' ERR
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
logs=target/test-logs
mkdir -p "$logs"
failed=0
form=${1:-long}
# What servers announce to clients outside differs between these three; the suite and the other stories are about pods.
engines="redis-6.2 redis-7.0 valkey-8.0"
[ "$form" = long ] || engines=redis-7.0

if [ "$form" = figures ]; then
    shift
    built=release
    cargo build --release --locked --package larder --package larder-e2e
else
    built=debug
    cargo build --locked --package larder --package larder-e2e
fi
built=$(realpath "${CARGO_TARGET_DIR:-target}")/$built

# Outside of what CI keeps.
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
bed=
if [ -z "${LARDER_TEST_KUBECONFIG:-}" ]; then
    # Short: sockets of the test bed are in it, and their paths must fit.
    work=$(mktemp -d /tmp/l-XXXXXX)
    bed=$work/bed
    trap 'scripts/testbed.sh --dir "$bed" down >/dev/null || true; cp -r "$bed/logs" "$logs/testbed" 2>/dev/null || true; rm -rf "$work" "$secrets"' EXIT
    rm -rf "$logs/testbed"
    # With fewer than six a worker may hold most primaries of a cluster instance, whose loss nobody then gets over.
    workers=3
    [ "$form" != figures ] || workers=6
    scripts/testbed.sh --dir "$bed" up --workers "$workers" --zones 3 --audit
    export LARDER_TEST_KUBECONFIG=$bed/kubeconfig
else
    LARDER_TEST_KUBECONFIG=$(realpath "$LARDER_TEST_KUBECONFIG")
    bed=$(dirname "$LARDER_TEST_KUBECONFIG")
    if [ -z "${LARDER_TEST_BED:-}" ] && [ -S "$bed/control.sock" ]; then scripts/testbed.sh --dir "$bed" ready; else bed=; fi
fi
if [ -n "$bed" ]; then
    # shellcheck disable=SC2086 # a list of words
    LARDER_TESTBED_DIR=$bed scripts/testbed-images.sh "$built/larder" $engines
    # The program itself where it needs no sudo: the script takes a moment to find it, at every call.
    program=$root/scripts/testbed.sh
    [ "$(id -u)" != 0 ] || program=$(scripts/testbed.sh build)
    export LARDER_TEST_BED="$program --dir $bed"
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

# Stories of tests/e2e, told of instances in pods. They run in the control plane's network, where Services are reached, and
# where the API server is at another port than on the machine.
inside() { # command...
    sed 's#https://127.0.0.1:[0-9]*#https://127.0.0.1:6443#' "$LARDER_TEST_KUBECONFIG" >"$secrets/kubeconfig"
    LARDER_TEST_STORIES=kubernetes LARDER_TEST_KUBECONFIG=$secrets/kubeconfig "$@"
}
told() { # test filter...
    local test=$1
    shift
    inside env "CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER=$LARDER_TEST_BED exec --" \
        cargo test --locked -p larder-e2e --test "$test" -- --test-threads=1 "$@"
}
short() {
    told standalone each_killed_process_comes_back_with_the_data --exact &&
        told read_write planned_failover_loses_nothing killed_primary_is_succeeded --exact &&
        told cluster planned_failover_of_a_shard_loses_nothing --exact &&
        told kubernetes_pods a_pod_that_is_deleted_hands_over_and_loses_nothing \
            the_loss_of_the_primarys_worker_is_got_over_while_serve_is_down --exact
}
# Those that are about processes, addresses and data, not about the folders and ports of one machine.
long() {
    told standalone any_client each_killed_process &&
        told read_write planned_failover_loses killed_primary primary_killed stopped all_nodes fourth_failover &&
        told cluster cluster_clients planned_failover killed_primary primary_killed all_nodes stopped &&
        told kubernetes_pods &&
        told changes
}

if [ "$form" != long ] && [ -z "${LARDER_TEST_BED:-}" ]; then
    echo "test-kubernetes: LARDER_TEST_KUBECONFIG is of no test bed that runs here, and the $form form switches workers off:" \
        "start that bed, or unset the variable for one of its own; LARDER_SKIP=kubernetes skips it in \`make test\`" >&2
    exit 1
fi
case $form in
short) short; exit ;;
figures)
    # shellcheck disable=SC2086
    inside $LARDER_TEST_BED exec -- "$built/figures" "$built/larder" --only start,gaps --runs 10 "$@"
    exit ;;
esac
check kubernetes-conformance cargo test --locked -p larder-cluster-k8s --test kubernetes
check kubernetes-chart scripts/test-helm.sh
if [ -n "${LARDER_TEST_BED:-}" ]; then
    check kubernetes-foundation long
    check kubernetes-stories cargo test --locked -p larder-e2e --test kubernetes -- --test-threads=1
    # One after the other: each switches off a worker of its own choice.
    check kubernetes-exposure cargo test --locked -p larder-e2e --test kubernetes_exposure -- --test-threads=1
    check kubernetes-faults cargo test --locked -p larder-e2e --test kubernetes_faults -- --test-threads=1
else
    printf 'SKIP %-22s LARDER_TEST_BED is not set\n' kubernetes-foundation kubernetes-stories kubernetes-exposure kubernetes-faults
fi
exit "$failed"
