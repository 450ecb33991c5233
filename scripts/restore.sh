#!/usr/bin/env bash
# Makes the data directories of a new cluster, with a name of its own, from a backup; then start its nodes.
# usage: scripts/restore.sh FILE.gz --cluster new.json [--data DIR] [--id ID]
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
'' | -h | --help) sed -n 2,3p "${BASH_SOURCE[0]}"; exit 0 ;;
esac
exec "$project/.venv/bin/python" "$project/scripts/backup.py" restore "$@"
