#!/usr/bin/env bash
# The client in clients/go, with its own tests, against servers of their own.
#
#   PACENOTE=target/debug/pacenote tests/e2e/client-go.sh [ARGUMENT OF go test...]
#
# Needs go and buf. GO_RACE=0 leaves the race detector out, which needs a C compiler.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

need go buf
# A copy, so that nothing is made in the tree. The protos lie beside it as they do there.
mkdir "$work/clients"
cp -r "$root/clients/go" "$work/clients/go"
cp -r "$root/proto" "$work/proto"
cd "$work/clients/go"

unformatted=$(gofmt -l .)
[[ -z $unformatted ]] || { printf 'FAILED: gofmt would change\n%s\n' "$unformatted" >&2; exit 1; }
go vet ./...
race=()
[[ ${GO_RACE:-1} == 0 ]] || race=(-race)
# Most of the time they wait: more of them at once than there are cores.
PACENOTE=$PACENOTE go test "${race[@]}" -mod=readonly -count=1 -parallel 6 -timeout 5m "$@" ./...
