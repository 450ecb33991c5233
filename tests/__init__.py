"""The tests: a folder for each part of the package, for scripts and project; harness/ has what they share."""
