#!/usr/bin/env bash
# Formatting, vet and unit tests of the test bed's Go code. With the flags of the build, so that both share one cache.
set -euo pipefail
cd "$(dirname "$0")/../testbed"
export GOFLAGS="-trimpath -buildvcs=false" CGO_ENABLED=0 PATH=$PATH:/usr/local/go/bin
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { printf 'testbed: not formatted by gofmt:\n%s\n' "$unformatted" >&2; exit 1; }
go vet ./...
go test ./...
(cd coredns && go vet ./...)
