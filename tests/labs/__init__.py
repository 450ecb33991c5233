"""What draws traces."""
