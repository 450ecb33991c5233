#!/usr/bin/env bash
# Makes the data directories of a new cluster, with a name of its own, from a backup; then start its nodes.
# usage: scripts/restore.sh FILE.gz --cluster new.json [--data DIR] [--id ID]
exec "$(dirname "${BASH_SOURCE[0]}")/backup.py" restore "$@"
