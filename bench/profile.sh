#!/usr/bin/env bash
# Where the relay spends its time: runs a shape against it under `perf record` and prints the top of the symbols.
#
#   bench/profile.sh                    1000x1 at the steady load
#   bench/profile.sh 1x1000 flat        another shape, flat out
#   bench/profile.sh 1000x1 steady 60   sixty symbols
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shape=${1:-1000x1} load=${2:-steady} lines=${3:-40}

if ! command -v perf >/dev/null 2>&1; then
  echo "perf is not installed: on Debian it is in the package linux-perf." >&2
  exit 1
fi
probe=$(mktemp)
trap 'rm -f "$probe" "$probe.old"' EXIT
if ! said=$(perf record --quiet --output "$probe" -- true 2>&1); then
  echo "perf cannot record here. It says:" >&2
  echo "$said" >&2
  echo "Where /proc/sys/kernel/perf_event_paranoid is above 2, root can lower it; many containers forbid perf." >&2
  exit 1
fi

cargo build --profile profiling --package cli --package bench
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/profiles"
data=$target/profiles/$shape-$load.data
"$target/profiling/bench" hotpath --only deliveries --shape "$shape" --load "$load" --runs 1 --seconds 10 \
  --relay "$target/profiling/agent-relay" --perf "$data"

if ! perf report --stdio --input "$data" --header-only 2>/dev/null | grep -q 'name = .*cycles'; then
  echo "This machine counts no cycles: samples are taken by the clock, and what runs with interrupts off is not seen."
fi
echo "The symbols with the most time of their own ($data has the call chains: perf report --input $data):"
perf report --stdio --input "$data" --no-children --call-graph none --sort symbol,dso --percent-limit 0.3 2>/dev/null |
  grep -v '^#' | grep -v '^$' | head -n "$lines"
