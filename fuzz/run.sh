#!/usr/bin/env bash
# Fuzzes every target, or the named ones, each for so many seconds:
#
#   fuzz/run.sh [SECONDS [TARGET…]]
#
# Needs the nightly toolchain and cargo-fuzz. What is found is in `fuzz/artifacts/`; CONTRIBUTING.md says what to do with it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:-60}
targets=("${@:2}")
if ((${#targets[@]} == 0)); then
  for file in fuzz_targets/*.rs; do
    targets+=("$(basename "$file" .rs)")
  done
fi

# Without a sanitizer: the code has no `unsafe`.
cargo +nightly fuzz build --sanitizer none
failed=()
for target in "${targets[@]}"; do
  # What is new goes into a folder of its own: the corpus in the repository stays small.
  mkdir -p "found/$target"
  echo "== $target"
  cargo +nightly fuzz run --sanitizer none "$target" "found/$target" "corpus/$target" -- \
    -max_total_time="$seconds" -max_len=4096 -dict=words.dict -print_final_stats=1 || failed+=("$target")
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
