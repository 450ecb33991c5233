"""The client library, its command line, and cluster.json."""
