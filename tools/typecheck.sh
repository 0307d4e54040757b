#!/bin/sh
# mypy over the package as it is installed: compiler/ is `effc`, the other folders are its
# subpackages. mypy cannot be told so, hence a folder of links in that shape.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir "$tree/effc"
for entry in "$root"/compiler/*; do ln -s "$entry" "$tree/effc/"; done
for folder in passes kernels runtimes devices; do ln -s "$root/$folder" "$tree/effc/"; done
cd "$tree"
"${PYTHON:-python3}" -m mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p effc "$@"
