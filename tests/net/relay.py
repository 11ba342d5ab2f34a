"""Forwards TCP from one address to another, each way, with a delay; freezes while a file exists.

relay.py LISTEN_HOST PORT TO_HOST PORT DELAY_MS FREEZE_FILE
A frozen relay keeps every connection open and takes new ones, but nothing passes: what a half-open connection is like.
"""

import asyncio
import os
import sys

listen_host, listen_port, to_host, to_port, delay_ms, freeze_file = sys.argv[1:]
DELAY = int(delay_ms) / 1000


async def thaw():
    while os.path.exists(freeze_file):
        await asyncio.sleep(0.02)


async def pump(reader, writer):
    """Bytes leave DELAY after they came, however many are on their way."""
    loop = asyncio.get_running_loop()
    underway = asyncio.Queue(maxsize=4096)

    async def deliver():
        while True:
            due, data = await underway.get()
            await asyncio.sleep(max(0, due - loop.time()))
            await thaw()
            if not data:
                break
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        while data := await reader.read(1 << 16):
            await underway.put((loop.time() + DELAY, data))
        await underway.put((loop.time() + DELAY, b""))
        await delivery
    except (ConnectionError, OSError):
        delivery.cancel()
    finally:
        writer.close()


async def serve(reader, writer):
    await thaw()
    try:
        onward_reader, onward_writer = await asyncio.open_connection(to_host, int(to_port))
    except OSError:
        writer.close()
        return
    await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer), return_exceptions=True)


async def main():
    server = await asyncio.start_server(serve, listen_host, int(listen_port))
    print("relaying", flush=True)
    await server.serve_forever()


asyncio.run(main())
