"""A WebSocket server in the place of a task: python3 websocket_task.py ADDRESS PORT. It echoes; /push sends ten messages of its own."""
import asyncio
import sys

import websockets


async def serve(socket, path):
    if path == "/push":
        for number in range(10):
            await socket.send(f"event {number}")
            await asyncio.sleep(0.05)
        return
    async for message in socket:
        await socket.send(message)


async def main():
    async with websockets.serve(serve, sys.argv[1], int(sys.argv[2]), max_size=None):
        await asyncio.Future()


asyncio.run(main())
