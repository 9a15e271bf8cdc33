"""The chat stages: messages, the line codec, parse, route, deliver and the Outbox.

Imports `pipeline` and `retry`; knows no sockets and no processes.
"""
