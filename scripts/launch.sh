#!/usr/bin/env bash
# Start and stop a cluster on hosts that are reached over ssh; see scripts/launch.sh --help.
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/../deploy/launch.py" "$@"
