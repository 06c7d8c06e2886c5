#!/usr/bin/env bash
# Everything there is to test. The last line counts tests that ran, failed and were skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

if [ "$(id -u)" != 0 ]; then
  echo "the lab makes network namespaces and TUN devices: run as root" >&2
  exit 1
fi
scripts/packages.sh cc nft iptables conntrack ip sysctl setpriv || exit 1

failed_steps=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# tests NAME ARGUMENTS...: cargo test, shown as it runs and kept for the count.
tests() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  cargo test --locked "$@" 2>&1 | tee -a "$log" | grep -Ev '^(\s*(Compiling|Fresh|Finished|Running|Doc-tests)|running [0-9]+ tests?|test .* \.\.\. ok)|^$'
  local status=${PIPESTATUS[0]}
  echo "== $name: $((SECONDS - start)) s"
  [ "$status" = 0 ] || failed_steps=$((failed_steps + 1))
}

start=$SECONDS
scripts/check.sh || failed_steps=$((failed_steps + 1))
step "binaries" cargo build --locked --workspace || exit 1
tests "unit and property tests" --workspace --exclude e2e --no-fail-fast
tests "lab" -p e2e --no-fail-fast -- --nocapture --test-threads="${LAB_THREADS:-4}"

count() { grep -E '^test result:' "$log" | grep -oE "[0-9]+ $1" | awk '{ total += $1 } END { print total + 0 }'; }
skipped=$(count ignored)
if git grep -nE '#\[ignore\]' -- '*.rs'; then
  echo "a test is skipped without a reason"
  failed_steps=$((failed_steps + 1))
fi
[ "$skipped" = 0 ] || git grep -hoE '#\[ignore = ".*"\]' -- '*.rs'
echo "took $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
echo "$(count passed) passed, $(count failed) failed, $skipped skipped"
[ "$failed_steps" = 0 ] || { echo "$failed_steps steps failed"; exit 1; }
[ "$(count passed)" -gt 0 ]
