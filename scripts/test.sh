#!/usr/bin/env bash
# Everything there is to test. The last line counts tests that ran, failed and were skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

require_root || exit 1
require_rust || exit 1
scripts/packages.sh cc nft iptables conntrack ip sysctl setpriv nsenter nginx haproxy || exit 1
require_go || exit 1

# Files, because some tests run in the background.
logs=$(mktemp -d)
notes=$(mktemp -d)
trap 'rm -rf "$logs" "$notes"' EXIT
touch "$notes/times" "$notes/problems"
start=$SECONDS
# The last lines tell what failed; traces of the test harness would hide it.
export RUST_BACKTRACE=0

problem() { echo "$*" >>"$notes/problems"; }

# took NAME BEGAN: how long a step took.
took() { printf '%5d s  %s\n' $((SECONDS - $2)) "$1" >>"$notes/times"; }

# tests NAME ARGUMENTS...: cargo test, shown as it runs and kept for the count. Ends after 40 minutes, whatever hangs.
tests() {
  local name=$1 began=$SECONDS status
  shift
  echo "== $name"
  timeout 40m cargo test --locked --no-fail-fast "$@" </dev/null 2>&1 | tee "$logs/$name" |
    grep -Ev '^(\s*(Compiling|Fresh|Finished|Running|Doc-tests)|running [0-9]+ tests?|test .* \.\.\. ok)|^$'
  status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || problem "$name: exit status $status"
  took "$name" "$began"
}

# count WHAT FILES...: the sum over all test programs in the logs of these runs.
count() {
  local what=$1
  shift
  cat -- "$@" 2>/dev/null | grep -oE "^test result:.*" | grep -oE "[0-9]+ $what" | awk '{ total += $1 } END { print total + 0 }'
}

# What makes every test of the lab run once: these filters, and none of them. The long ones are minutes of little traffic.
floods=(hostile::)
long=(longrun::direct_loses longrun::relay_loses cuts::a_transfer)
outage=lasting::direct_paths_outlive
skips=(--skip table::)
for one in "${floods[@]}" "${long[@]}"; do skips+=(--skip "$one"); done

# timed NAME COMMAND...: a step without which the rest makes no sense.
timed() {
  local name=$1 began=$SECONDS
  shift
  echo "== $name"
  "$@" || exit 1
  took "$name" "$began"
}

timed kubernetes scripts/clusters.sh
timed images scripts/images.sh
began=$SECONDS
scripts/check.sh || problem checks
took checks "$began"
timed binaries step "workspace" cargo build --locked --workspace
tests units --workspace --exclude e2e
# Some bounds are a second or two by the receiver's clock, so these share the machine with little else; floods with nothing.
tests lab-table -p e2e --test scenarios -- --nocapture --test-threads=1 table::
tests lab-short -p e2e --lib --bins --test lab --test scenarios -- --nocapture --test-threads=2 "${skips[@]}"
tests lab-floods -p e2e --test scenarios -- --nocapture --test-threads=1 "${floods[@]}"
tests lab-clusters -p e2e --test clusters -- --nocapture --test-threads=1 --skip "$outage"
# Clusters whose control is away for five minutes leave the machine to others.
tests lab-long -p e2e --test scenarios -- --nocapture --test-threads=8 "${long[@]}" &
tests lab-outage -p e2e --test clusters -- --nocapture --test-threads=1 "$outage"
wait

listed=$(cargo test --locked -p e2e -- --list 2>/dev/null | grep -c ': test$')
ran=$(($(count passed "$logs"/lab-*) + $(count failed "$logs"/lab-*) + $(count ignored "$logs"/lab-*)))
[ "$listed" = "$ran" ] || problem "the lab has $listed tests, and $ran were run"

skipped=$(count ignored "$logs"/*)
named=$(grep -hE '^test .* \.\.\. ignored, .' "$logs"/* | tee "$logs/named" | wc -l)
cat "$logs/named"
[ "$skipped" = "$named" ] || problem "$((skipped - named)) tests are skipped without a reason"
passed=$(count passed "$logs"/*)
[ "$passed" -gt 0 ] || problem "no test has run"

echo
awk '/^failures:$/ { on = 1 } /^test result:/ { on = 0 } on && /^    [^ ]+$/ { print "failed:" $0 }' "$logs"/* | sort -u
# What the failed ones said.
grep -hE -A 8 '(^|\.\.\. )Error: |panicked at ' "$logs"/* | cut -c 1-600 | tail -n 80
cat "$notes/times"
echo "took $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
sed 's/^/problem: /' "$notes/problems"
echo "$passed passed, $(count failed "$logs"/*) failed, $skipped skipped"
[ ! -s "$notes/problems" ]
