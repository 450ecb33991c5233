"""The scripts as users call them."""
