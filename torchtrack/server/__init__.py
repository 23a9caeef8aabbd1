"""The server: takes journals of many nodes and keeps them as the ranks wrote them. Imports no torch.

`journals` is where they lie, `ingest` how they come in, `auth` who may, `budget` how fast, `app` puts it together.
"""
