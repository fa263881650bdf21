"""Closed loops: each client sends its next request when it has the answer to its last one.

The clients share the cores with the servers. So they run in one thread with one selector, and send prepared bytes;
their CPU time is reported too. A tool like wrk takes less, but cannot log in, send a new key with each order, or
speak AMQP and WebSocket.
"""

import heapq
import json
import math
import selectors
import socket
import time
from collections import Counter
from contextlib import suppress
from uuid import uuid4

from kombu import Connection, Queue

# An answer that takes longer ends the benchmark.
ANSWER_SECONDS = 15


class BenchmarkFailed(Exception):
    """Its text is a sentence that says what went wrong."""


class LoadResult:
    """latencies_ms: of all answers. errors: {unexpected answer: count}. seconds: the whole duration.

    own_cpu_seconds: of a peer that is its own load generator, else None.
    """

    def __init__(self):
        self.latencies_ms, self.errors, self.seconds = [], Counter(), 0
        self.own_cpu_seconds = None

    @property
    def count(self):
        return len(self.latencies_ms)


def percentile(values, percent):
    """The smallest value that `percent` percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def request(method, path, body=None, **headers):
    """The bytes of a request. headers: with _ for -."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if content:
        lines |= {"Content-Type": "application/json", "Content-Length": len(content)}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def http(port, clients, seconds=math.inf, expected=(200,), keep_alive=True, per_second=math.inf):
    """Let each client send requests for that time, or until it has no more. expected: the statuses that are no errors.

    clients: a list of iterators of requests. keep_alive: else each request has a connection of its own, and its latency
    begins before it connects. per_second: of all clients together, at most.
    """
    load, started_at = LoadResult(), time.perf_counter()
    pause = len(clients) / per_second
    # (when to send, number of the client, client), as a heap: at first their turns are spread over the pause.
    waiting = [
        (started_at + pause * number / len(clients), number, _Client(port, number, requests))
        for number, requests in enumerate(clients)
    ]
    with selectors.DefaultSelector() as selector:
        while True:
            while waiting and waiting[0][0] <= time.perf_counter():
                client = heapq.heappop(waiting)[2]
                if time.perf_counter() - started_at < seconds and client.send():
                    selector.register(client.socket, selectors.EVENT_READ, client)
                else:
                    client.close()
            if not waiting and not selector.get_map():
                break
            until_next = waiting[0][0] - time.perf_counter() if waiting else ANSWER_SECONDS
            ready = selector.select(max(0, until_next))
            if not ready and not waiting:
                raise BenchmarkFailed(f"The server gave no answer in {ANSWER_SECONDS} s.")
            for key, _ in ready:
                client = key.data
                status = client.receive()
                if status is None:
                    continue
                now = time.perf_counter()
                load.latencies_ms.append((now - client.sent_at) * 1000)
                if status not in expected:
                    load.errors[status] += 1
                is_steady = keep_alive and not pause
                if is_steady and now - started_at < seconds and client.send():
                    continue
                selector.unregister(client.socket)
                if is_steady or not keep_alive:
                    client.close()
                if not is_steady:
                    heapq.heappush(waiting, (client.sent_at + pause, client.number, client))
    load.seconds = time.perf_counter() - started_at
    return load


def connect(port, number):
    """Connect from an address that is the client's alone, since limits count by address."""
    address = f"127.0.{1 + number // 250}.{1 + number % 250}"
    return socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS, source_address=(address, 0))


class _Client:
    """One connection, which is kept until `close`."""

    def __init__(self, port, number, requests):
        self.number = number
        self._port, self._requests = port, requests
        self.socket = self._connect()
        self._answer = b""

    def _connect(self):
        connected = connect(self._port, self.number)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def close(self):
        """The next request opens a new connection."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def send(self):
        """Send the next request. False if there is none."""
        self._answer = b""
        data = next(self._requests, None)
        if data is None:
            return False
        self.sent_at = time.perf_counter()
        if self.socket is None:
            self.socket = self._connect()
        self.socket.sendall(data)
        return True

    def receive(self):
        """The status, once the whole answer is received; None before."""
        data = self.socket.recv(65536)
        if not data:
            raise BenchmarkFailed("The server closed a connection.")
        self._answer += data
        head_bytes = self._answer.find(b"\r\n\r\n") + 4
        if head_bytes < 4:
            return None
        head = self._answer[:head_bytes].lower()
        _, found, rest = head.partition(b"content-length: ")
        body_bytes = int(rest[: rest.index(b"\r\n")]) if found else 0
        return int(head[9:12]) if len(self._answer) == head_bytes + body_bytes else None


def rpc(uri, service, method, outstanding, seconds):
    """Calls without arguments by a bare AMQP client. outstanding: the number of calls at once."""
    load = LoadResult()
    reply_to, body = uuid4().hex, b'{"args":[],"kwargs":{}}'
    with Connection(uri) as connection, connection.channel() as channel:
        Queue(reply_to, exclusive=True, channel=channel).declare()
        channel.queue_bind(reply_to, "nameko-rpc", reply_to)
        sent_at = {}

        def call():
            correlation_id = uuid4().hex
            message = channel.prepare_message(
                body,
                content_type="application/json",
                content_encoding="utf-8",
                properties={"reply_to": reply_to, "correlation_id": correlation_id, "delivery_mode": 1},
            )
            sent_at[correlation_id] = time.perf_counter()
            channel.basic_publish(message, exchange="nameko-rpc", routing_key=f"{service}.{method}")

        def on_reply(message):
            now = time.perf_counter()
            load.latencies_ms.append((now - sent_at.pop(message.properties["correlation_id"])) * 1000)
            if json.loads(message.body)["error"]:
                load.errors["RPC error"] += 1
            if now - started_at < seconds:
                call()

        channel.basic_consume(reply_to, no_ack=True, callback=on_reply)
        started_at = time.perf_counter()
        for _ in range(outstanding):
            call()
        while sent_at:
            connection.drain_events(timeout=ANSWER_SECONDS)
    load.seconds = time.perf_counter() - started_at
    return load


def call(uri, exchange, routing_key, message, seconds):
    """The JSON answer to one message. Its reply queue is reachable by the default exchange, and by `nameko-rpc`."""
    reply_to, answers = uuid4().hex, []
    with Connection(uri) as connection, connection.channel() as channel:
        Queue(reply_to, exclusive=True, channel=channel).declare()
        if exchange:
            channel.queue_bind(reply_to, exchange, reply_to)
        channel.basic_consume(reply_to, no_ack=True, callback=lambda reply: answers.append(json.loads(reply.body)))
        properties = {"reply_to": reply_to, "correlation_id": uuid4().hex, "delivery_mode": 1}
        body = json.dumps(message)
        sent = channel.prepare_message(
            body, content_type="application/json", content_encoding="utf-8", properties=properties
        )
        channel.basic_publish(sent, exchange=exchange, routing_key=routing_key)
        ends_at = time.monotonic() + seconds
        while not answers:
            if time.monotonic() > ends_at:
                raise BenchmarkFailed(f"{routing_key} gave no answer in {seconds} s.")
            with suppress(TimeoutError):
                connection.drain_events(timeout=1)
    return answers[0]


def publish(uri, queue, bodies):
    """Send persistent messages to a queue."""
    with Connection(uri) as connection, connection.channel() as channel:
        for body in bodies:
            message = channel.prepare_message(
                body, content_type="application/json", content_encoding="utf-8", properties={"delivery_mode": 2}
            )
            channel.basic_publish(message, exchange="", routing_key=queue)
        # An answer of the broker: it has read all that came before.
        channel.queue_declare(queue, passive=True)
