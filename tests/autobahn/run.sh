#!/usr/bin/env bash
# Judges the relay's WebSocket with Autobahn|Testsuite:
#
#   tests/autobahn/run.sh [--accept] [RELAY]
#
# RELAY is the `agent-relay` to judge; without it one is built in the dev profile. What is worse than `expected.json`
# says fails. `--accept` writes the results there instead.
#
# The suite exists for Python 2.7 only. It is installed once, under `target/`. Exits with 77 where there is no Python 2.7.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=${CARGO_TARGET_DIR:-target}/autobahn

accept=()
if [[ ${1:-} == --accept ]]; then
  accept=(--accept)
  shift
fi

is_python27() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; }
python=
for candidate in "$(pyenv prefix 2.7.18 2>/dev/null || true)/bin/python2.7" python2.7; do
  if is_python27 "$candidate"; then
    python=$candidate
    break
  fi
done
if [[ -z $python ]]; then
  echo "Autobahn|Testsuite needs Python 2.7, which is not here: \`pyenv install 2.7.18\` brings it." >&2
  exit 77
fi

if ! cmp --silent tests/autobahn/requirements.txt "$target/requirements.txt"; then
  rm -rf "$target"
  mkdir -p "$target"
  PYTHONWARNINGS=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$target/packages" --requirement tests/autobahn/requirements.txt
  cp tests/autobahn/requirements.txt "$target/"
fi

relay=${1:-}
if [[ -z $relay ]]; then
  cargo build --package cli
  relay=${CARGO_TARGET_DIR:-target}/debug/agent-relay
fi

exec "$python" tests/autobahn/judge.py "${accept[@]}" "$target" "$relay"
