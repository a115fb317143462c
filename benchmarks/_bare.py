"""Baselines: servers that move the same bytes as a node and think about none of them.

`python -m benchmarks._bare echo BYTES` answers every request of the given size, `python -m benchmarks._bare sync BYTES FILE` writes and
syncs the requests of one turn together before it answers them, and `python -m benchmarks._bare spread BYTES` sends `BYTES` bytes to every
other connection for each request, before it answers. They are one trio task on one epoll, as a node is, without codec, checks or state.

`python -m benchmarks._bare hold COUNT BYTES` keeps that many objects in dictionaries and does nothing else.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable

import trio

from ._frames import ANSWER_BYTES, FILE_BYTES

_Finish = Callable[[list[tuple[socket.socket, bytes]]], None]


def _answer(owed: list[tuple[socket.socket, bytes]]) -> None:
    for client, answers in owed:
        client.send(answers)


async def _serve(request_bytes: int, answer: bytes, finish: _Finish, clients: dict[int, socket.socket]) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    poller.register(0, select.EPOLLIN)
    read: dict[int, int] = {}  # bytes of an unfinished request, by descriptor
    print(json.dumps({"host": "127.0.0.1", "port": listener.getsockname()[1]}), flush=True)
    while True:
        await trio.lowlevel.wait_readable(poller.fileno())
        owed: list[tuple[socket.socket, bytes]] = []
        for descriptor, _ in poller.poll(0, 512):
            if descriptor == 0:
                if not os.read(0, 4096):
                    return
            elif descriptor == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()], read[client.fileno()] = client, 0
                poller.register(client, select.EPOLLIN)
            else:
                client = clients[descriptor]
                try:
                    data = client.recv(65536)
                except OSError:
                    data = b""
                if not data:
                    poller.unregister(client)
                    del clients[descriptor]
                    client.close()
                    continue
                count, read[descriptor] = divmod(read[descriptor] + len(data), request_bytes)
                if count:
                    owed.append((client, answer * count))
        if owed:
            finish(owed)


def _syncing(path: str, request_bytes: int, answer_bytes: int) -> _Finish:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, bytes(FILE_BYTES), 0)
    os.fsync(descriptor)
    place = 0

    def finish(owed: list[tuple[socket.socket, bytes]]) -> None:
        nonlocal place
        size = sum(len(answers) for _, answers in owed) // answer_bytes * request_bytes
        place = place + size if place + 2 * size < FILE_BYTES else 0
        os.pwrite(descriptor, b"\xa5" * size, place)
        os.fdatasync(descriptor)
        _answer(owed)

    return finish


def _spreading(data: bytes, clients: dict[int, socket.socket]) -> _Finish:
    def finish(owed: list[tuple[socket.socket, bytes]]) -> None:
        for asker, _ in owed:
            for client in clients.values():
                if client is not asker:
                    client.send(data)
        _answer(owed)

    return finish


def _hold(count: int, size: int) -> None:
    services: dict[str, dict[str, bytes]] = {}
    print(json.dumps({"host": "", "port": 0}), flush=True)
    sys.stdin.readline()
    for number in range(count):
        services.setdefault(f"service-{number % 1000}", {})[f"i-{number:08d}"] = number.to_bytes(8, "big") * (size // 8)
    print("{}", flush=True)
    sys.stdin.read()


def main(arguments: list[str]) -> None:
    kind, size = arguments[0], int(arguments[1])
    clients: dict[int, socket.socket] = {}
    if kind == "hold":
        _hold(size, int(arguments[2]))
    elif kind == "echo":
        trio.run(_serve, size, bytes(int(arguments[2])), _answer, clients)
    elif kind == "sync":
        trio.run(_serve, size, bytes(ANSWER_BYTES), _syncing(arguments[2], size, ANSWER_BYTES), clients)
    else:
        trio.run(_serve, size, bytes(ANSWER_BYTES), _spreading(bytes(int(arguments[2])), clients), clients)


if __name__ == "__main__":
    main(sys.argv[1:])
