"""The server's side: journals in, answers out. Nothing here imports torch."""
