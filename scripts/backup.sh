#!/usr/bin/env bash
# A consistent checkpoint of a running cluster into one file.
# usage: scripts/backup.sh FILE.gz [--cluster cluster.json] [--node ID]
exec "$(dirname "${BASH_SOURCE[0]}")/backup.py" backup "$@"
