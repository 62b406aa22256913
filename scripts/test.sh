#!/usr/bin/env bash
# Every check that CI runs, each with one line of result; the full output of a check is in
# target/test-logs/. One cargo profile (dev) serves them all.
#   test.sh [all|lint|unit|e2e|kubernetes]
# A check that cannot run fails. LARDER_SKIP="name name" skips checks by name, and says so.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:-all}
logs=target/test-logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0
started=$SECONDS

run() { # part name command...
    local of=$1 name=$2 begin=$SECONDS
    shift 2
    [ "$part" = all ] || [ "$part" = "$of" ] || return 0
    case " ${LARDER_SKIP:-} " in
    *" $name "*) printf 'SKIP %-14s by LARDER_SKIP\n' "$name"; skipped=$((skipped + 1)); return 0 ;;
    esac
    if "$@" >"$logs/$name.log" 2>&1; then
        printf 'ok   %-14s %4d s\n' "$name" $((SECONDS - begin))
        passed=$((passed + 1))
    else
        printf 'FAIL %-14s %4d s; the end of %s/%s.log:\n' "$name" $((SECONDS - begin)) "$logs" "$name"
        grep -nE '^(error|Error:|FAILED|failures:|---- |thread .* panicked|test .*FAILED|test result: FAILED)' "$logs/$name.log" | head -40
        tail -n 40 "$logs/$name.log"
        failed=$((failed + 1))
    fi
}

clippy() {
    cargo clippy --locked --workspace --all-targets -- -D warnings &&
        cargo clippy --locked --workspace --test kubernetes --test kubernetes_exposure --test kubernetes_pods -- -D warnings
}
# The end-to-end stories and some component tests run the binary itself.
binary() { cargo build --locked --package larder; }
# What every backend must do, once more with the real agents and relays: within `unit` a stub stands
# in for them, with which the tests of single files are quicker and sharper. Of the whole workspace:
# for one package alone cargo would build dependencies anew with other features.
conformance() {
    LARDER_TEST_BINARY=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/larder \
        cargo test --locked --workspace --exclude larder-e2e --test conformance
}
# Stories of a full disk mount one, which takes root, or a name space in which one is root.
disk() {
    if ! unshare --map-root-user --mount true; then
        echo "error: these tests need root, and a user's own name spaces are not allowed here;"
        echo "run this as root, or without them: LARDER_SKIP=full_disk"
        return 1
    fi
    local tmp status=0
    # A folder of their own, because what root's test runs left in /tmp is not theirs to write.
    tmp=$(mktemp -d /tmp/l-XXXXXX)
    TMPDIR=$tmp unshare --map-root-user --mount \
        cargo test --locked --workspace --exclude larder-e2e --lib full_disk &&
        TMPDIR=$tmp unshare --map-root-user --mount \
            cargo test --locked -p larder-e2e --test full_disk || status=1
    rm -rf "$tmp"
    return $status
}
# Three stories at a time: each runs a dozen processes, and CI has two cores.
e2e() { RUST_TEST_THREADS=3 cargo test --locked -p larder-e2e --tests --no-fail-fast; }

if [ "$(id -u)" != 0 ]; then
    unprivileged() { LARDER_SKIP="${LARDER_SKIP:-} full_disk" "$@"; }
else
    unprivileged() { "$@"; }
fi

run lint fmt cargo fmt --all --check
run lint tidy cargo run --locked --quiet -p xtask -- tidy
run lint layers cargo run --locked --quiet -p xtask -- layers
run lint clippy clippy
run unit build binary
run unit unit unprivileged cargo test --locked --workspace --exclude larder-e2e --no-fail-fast
run unit conformance conformance
[ "$part" != e2e ] || run e2e build binary
run e2e e2e unprivileged e2e
[ "$(id -u)" = 0 ] || run e2e full_disk disk
# On a real Kubernetes, in its short form; `make test-kubernetes` is the long one. Its test targets have `test = false`, so
# that nothing above runs them.
kubernetes() { scripts/testbed-setup.sh && scripts/test-kubernetes.sh short; }
run kubernetes kubernetes kubernetes

printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
printf 'in %d s\n' $((SECONDS - started)) >&2
[ "$failed" = 0 ]
