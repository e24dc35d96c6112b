"""The target on a server: an HTTP client, one small adapter for each engine, and starting and stopping servers.

No torch here: a laptop measures a cluster.
"""
