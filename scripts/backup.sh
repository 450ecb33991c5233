#!/usr/bin/env bash
# A consistent checkpoint of a running cluster into one file.
# usage: scripts/backup.sh FILE.gz [--cluster cluster.json] [--node ID]
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
'' | -h | --help) sed -n 2,3p "${BASH_SOURCE[0]}"; exit 0 ;;
esac
exec "$project/.venv/bin/python" "$project/scripts/backup.py" backup "$@"
