#!/usr/bin/env bash
# Make .venv with the pinned packages, unless it is there already.
# usage: scripts/setup.sh [--dev] [--fast]
#   --dev   the tools for tests and checks as well
#   --fast  compile the busiest modules: optional, it makes the nodes faster (needs gcc and Python's headers)
# PYTHON names the Python that .venv is made with (default: the distribution's, if it can make one, else python3).
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lists=(requirements.txt) fast=''
for option in "$@"; do
    case $option in
    --dev) lists+=(requirements-dev.txt) ;;
    --fast) lists+=(requirements-fast.txt) fast=yes ;;
    -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
    esac
done

# What was installed is remembered by the checksum of the lists, so that a second run costs nothing.
checksum=(sha256sum)
command -v sha256sum >/dev/null || checksum=(shasum -a 256) # macOS
sum=$(cat "$project"/requirements*.txt | "${checksum[@]}" | cut -d' ' -f1)
missing=()
for list in "${lists[@]}"; do
    grep -qx "$sum $list" "$project/.venv/installed" 2>/dev/null || missing+=("$list")
done

if [ ${#missing[@]} -gt 0 ]; then
    # A distribution's Python is built with optimizations that many home-made ones lack: nodes get 1.3 times faster.
    base=${PYTHON:-}
    able='import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(sys.version_info < (3, 11) or not os.path.exists(header))'
    for candidate in /usr/bin/python3 python3; do
        if [ -z "$base" ] && "$candidate" -c "$able" 2>/dev/null; then base=$candidate; fi
    done
    base=${base:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
        echo "setup.sh: Python 3.11 or later is needed (Debian: apt-get install python3 python3-venv)" >&2
        exit 2
    }
    if [ ! -x "$project/.venv/bin/python" ]; then
        "$base" -m venv "$project/.venv" || {
            echo "setup.sh: $base cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2
            exit 2
        }
    fi
    echo "installing the packages of ${missing[*]} into .venv ..." >&2
    "$project/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "${missing[@]/#/-r$project/}"
    "$project/.venv/bin/python" -c 'from thrift.protocol import fastbinary' 2>/dev/null || {
        echo "setup.sh: thrift was built without its C extension (Debian: apt-get install gcc python3-dev, then remove .venv)" >&2
        exit 2
    }
    printf "$sum %s\n" "${missing[@]}" >>"$project/.venv/installed"
fi

# With their bytecode, programs start in half the time. Python writes it by itself, unless PYTHONDONTWRITEBYTECODE is set.
"$project/.venv/bin/python" -m compileall -q "$project"/*.py "$project"/{gen-py,paxoskv,scripts,deploy} >/dev/null || true

if [ -n "$fast" ]; then "$project/.venv/bin/python" "$project/tools/compile.py"; fi
