#!/usr/bin/env bash
# Every check that CI runs, each with one line of result; the full output of a check is in
# target/test-logs/. One cargo profile (dev) serves them all.
#   test.sh [all|lint|unit|e2e]
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
        grep -nE '^(error|FAILED|failures:|---- |thread .* panicked|test .*FAILED|test result: FAILED)' "$logs/$name.log" | head -40
        tail -n 40 "$logs/$name.log"
        failed=$((failed + 1))
    fi
}

# The end-to-end stories and some component tests run the binary itself.
binary() { cargo build --locked --package larder; }
# Three stories at a time: each runs a dozen processes, and CI has two cores.
e2e() { RUST_TEST_THREADS=3 cargo test --locked -p larder-e2e --tests --no-fail-fast; }

run lint fmt cargo fmt --all --check
run lint tidy cargo run --locked --quiet -p xtask -- tidy
run lint layers cargo run --locked --quiet -p xtask -- layers
run lint clippy cargo clippy --locked --workspace --all-targets -- -D warnings
run unit build binary
run unit unit cargo test --locked --workspace --exclude larder-e2e --no-fail-fast
[ "$part" != e2e ] || run e2e build binary
run e2e e2e e2e

printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
printf 'in %d s\n' $((SECONDS - started)) >&2
[ "$failed" = 0 ]
