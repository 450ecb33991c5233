#!/usr/bin/env bash
# Set up .venv and run all tests.
# usage: scripts/test.sh [OPTION of pytest ...]
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in -h | --help) sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
"$project/scripts/setup.sh" --dev
cd "$project"
# Some tests mostly wait. pytest has exit codes of its own.
.venv/bin/python -m pytest -n "$(($(getconf _NPROCESSORS_ONLN) + 1))" --dist worksteal "$@" ||
    case $? in 2) exit 130 ;; 4 | 5) exit 2 ;; *) exit 1 ;; esac
