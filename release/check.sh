#!/usr/bin/env bash
# Builds the source distribution and the wheel, checks them, and runs the fast tests of the unpacked source distribution
# against the installed wheel: with the lowest versions that pyproject.toml allows on the oldest Python, and with the
# newest on the newest Python that is found. `make release-check`. With REPOSITORY=https://github.com/OWNER/NAME the
# last commit is built with links and project URLs of that address, at the tag of its version.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
work=${RELEASE_WORK:-$PWD/build/release-check}
rm -rf "$work"
mkdir -p "$work"

tree=$PWD
if [ -n "${REPOSITORY:-}" ]; then
  tree=$work/tree
  mkdir "$tree"
  git archive HEAD | tar -x -C "$tree"
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
  .venv/bin/python release/addresses.py "$tree" "$REPOSITORY" "v$version"
fi
"$uv" build --quiet --out-dir "$work/dist" "$tree"
"$uv" tool run --quiet twine check --strict "$work"/dist/*
sdist=$(echo "$work"/dist/*.tar.gz)
wheel=$(echo "$work"/dist/*.whl)
mkdir "$work/source"
tar -xzf "$sdist" -C "$work/source" --strip-components=1

found() { # the first of these versions that is installed, and not a shim of one that is not
  for version in "$@"; do
    "python$version" -c "" 2> /dev/null && command -v "python$version" && return
  done
  echo "None of these versions of Python is installed: $*" >&2
  return 1
}
run() {
  local name=$1 python=$2 resolution=$3
  echo "== $name: $("$python" --version), $resolution versions"
  "$uv" venv --quiet --python "$python" "$work/$name"
  local environment=$work/$name/bin/python
  "$uv" pip install --quiet --python "$environment" --resolution "$resolution" "xai-discern[all] @ file://$wheel"
  "$uv" pip install --quiet --python "$environment" pytest pytest-timeout pytest-xdist hypothesis selenium scikit-image
  "$environment" -c "import captum_ext, adapters, quantus_metrics, xai_compare, xai_discern"
  "$work/$name/bin/xai-discern" --version
  "$work/$name/bin/xai-compare" --help > "$work/$name.help"
  (
    cd "$work/source" # `pytest` alone does not put this folder on the path, so that the tests import the wheel
    "$environment" -P -c "import captum_ext as it; assert 'site-packages' in it.__file__, it.__file__"
    "$work/$name/bin/pytest" -n auto --dist worksteal -m "not slow and not large"
  )
}
run lowest "$(found 3.11)" lowest-direct
run newest "$(found 3.14 3.13 3.12 3.11)" highest
echo "Ready: $sdist and $wheel"
