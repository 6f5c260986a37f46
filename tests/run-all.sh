#!/usr/bin/env bash
# Builds everything and runs all tests. The virtual machines take long and need
# two processors; both wait often. So they run side by side, and what the machines
# said comes last.
set -euo pipefail
cd "$(dirname "$0")/.."

# Programs and tests at once, and the same words in each command: the features that
# tests need of dependencies are then those of all, and nothing is built twice.
whole=(--workspace --features gptprio/init)
read -ra cargo <<<"${CARGO:-cargo}"

"${cargo[@]}" build "${whole[@]}" --bins --tests

said=$(mktemp)
set -m # a process group of its own, so that it can be ended whole
# More machines at once than processors: a machine waits for its watchdog, too.
"${cargo[@]}" test "${whole[@]}" --test boots --no-fail-fast -- --test-threads 4 \
    >"$said" 2>&1 &
machines=$!
set +m
trap 'kill -- "-$machines" 2>/dev/null || :; rm -f "$said"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

status=0
"${cargo[@]}" test "${whole[@]}" --exclude vm-lab --no-fail-fast || status=$?

echo "Waiting for the virtual machines, which have run since the start."
wait "$machines" || status=$?
cat "$said"
exit "$status"
