#!/usr/bin/env bash
# Control the nodes of a cluster on this machine; see scripts/cluster.sh --help.
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../deploy/local.py" "$@"
