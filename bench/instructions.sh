#!/usr/bin/env bash
# Counts instructions per delivery, append and connection under callgrind, and fails where one is more than 3 % away from
# what bench/instructions.json keeps. `--write` keeps the new figures, `--runs 5` shows how little they move.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for command in valgrind cargo; do
  if ! command -v "$command" >/dev/null 2>&1; then
    echo "Missing: $command. The count needs valgrind and cargo." >&2
    exit 1
  fi
done

cargo build --release --package bench
exec "${CARGO_TARGET_DIR:-target}/release/bench" instructions "$@"
