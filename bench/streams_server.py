"""A plain chat server on asyncio streams: one task to read, one queue and one task to write, for each client.

The baseline of the comparison: the line protocol as most tutorials write it, with bounded queues and
nothing else (no notices, no limits, no metrics). Must not import the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal

_QUEUE_LINES = 1024  # for each client; a full one makes its senders wait
_BACKLOG = 4096

_Clients = dict[bytes, "asyncio.Queue[bytes]"]


async def _write_lines(queue: asyncio.Queue[bytes], writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(await queue.get())
        await writer.drain()


async def _send_line(clients: _Clients, sender: bytes, line: bytes) -> None:
    names, colon, text = line.partition(b":")
    if not colon:
        return
    copy = b"from %s: %s\n" % (sender, text.strip())
    for name in names.split(b","):
        queue = clients.get(name.strip())
        if queue is not None:
            await queue.put(copy)


async def _serve_client(
    clients: _Clients, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Log one client in and serve it until its stream ends; `main` cancels it at the end of the process."""
    name = (await reader.readline()).strip()
    if not name or name in clients:
        return
    queue = clients[name] = asyncio.Queue(_QUEUE_LINES)
    writer_task = asyncio.create_task(_write_lines(queue, writer))
    try:
        async for line in reader:
            await _send_line(clients, name, line)
    finally:
        del clients[name]
        writer_task.cancel()
        await asyncio.gather(writer_task, return_exceptions=True)


async def serve(stop: asyncio.Event) -> None:
    """Listen on a free port until `stop` is set; prints one ready record with the address."""
    clients: _Clients = {}

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, ValueError):  # a lost client, a line too long
                await _serve_client(clients, reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(on_client, "127.0.0.1", 0, backlog=_BACKLOG)
    host, port = server.sockets[0].getsockname()[:2]
    print(json.dumps({"event": "gateway.ready", "listen": [f"line://{host}:{port}"]}), flush=True)
    await stop.wait()
    server.close()


async def main() -> None:
    """Raise the limit of open files and serve until SIGTERM or SIGINT."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(stop)


if __name__ == "__main__":
    asyncio.run(main())
