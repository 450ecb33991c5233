"""The tests: a folder for each room of the package, for scripts and project; harness/ has what they share."""
