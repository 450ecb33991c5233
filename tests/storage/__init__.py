"""The journal, checkpoints and damage, on a disk that fails."""
