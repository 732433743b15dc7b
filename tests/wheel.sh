#!/usr/bin/env bash
# Builds the wheel, installs it in a clean environment away from the repository, and runs the
# demo from there. Takes the interpreter that has `build` as its argument.
set -euo pipefail
python=$(realpath "$1")
repository=$(cd "$(dirname "$0")/.." && pwd)
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT

"$python" -m build --wheel --outdir "$away/dist" "$repository"
cd "$away"
python3 -m venv venv
DS_BUILD_OPS=0 venv/bin/python -m pip install --quiet -c "$repository/constraints.txt" dist/*.whl
venv/bin/sailplan --version
venv/bin/sailplan demo --output "$away/demo"
