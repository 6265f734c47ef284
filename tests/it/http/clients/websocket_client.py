"""A WebSocket client: python3 websocket_client.py URI ADDRESS PORT CERTIFICATE. Prints a line for each thing that it has seen."""
import asyncio
import ssl
import sys
import urllib.parse

import websockets

uri, address, port, trusted = sys.argv[1:5]


async def main():
    context = ssl.create_default_context(cafile=trusted) if uri.startswith("wss") else None
    to = dict(host=address, port=int(port), ssl=context, max_size=None)
    if context:
        to["server_hostname"] = urllib.parse.urlsplit(uri).hostname
    async with websockets.connect(uri, **to) as socket:
        await socket.send("text")
        print("text", await socket.recv())
        await socket.send(bytes(1_000_000))
        print("large", len(await socket.recv()))
        await (await socket.ping())
        print("ping ok", socket.subprotocol)
        # Longer than any time-out of a request.
        await asyncio.sleep(4)
        await socket.send("later")
        print("later", await socket.recv())
    print("closed", socket.close_code)
    async with websockets.connect(uri.rsplit("/", 1)[0] + "/push", **to) as socket:
        print("pushed", len([message async for message in socket]))


asyncio.run(main())
