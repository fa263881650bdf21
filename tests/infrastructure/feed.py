"""A client of the WebSocket feed. It can receive a change of any product at any time."""

import json

import websocket


class Feed:
    """A WebSocket with JSON messages. `receive` skips changes of products, since other tests change products, too.

    options: for `websocket.create_connection`.
    """

    def __init__(self, url, **options):
        self.socket = websocket.create_connection(url, timeout=30, **options)

    def send(self, **message):
        self.socket.send(json.dumps(message))

    def receive(self):
        """The next message that is not about a product."""
        while True:
            message = json.loads(self.socket.recv())
            if message["type"] != "product":
                return message

    def receive_until(self, kind):
        """The next message of that type; skips those before it."""
        while True:
            message = json.loads(self.socket.recv())
            if message["type"] == kind:
                return message

    def watch(self, *products):
        """Receive changes of these products only. Returns once this is in effect."""
        self.send(type="watch", product_ids=[product["id"] for product in products])
        self.send(type="ping")
        self.receive_until("pong")

    def receives_nothing_more(self):
        """Whether the next message of any type is the answer to this ping."""
        self.send(type="ping")
        return json.loads(self.socket.recv()) == {"type": "pong"}

    def closing_code(self):
        """The code with which the server closes the connection; skips messages before it."""
        while True:
            opcode, data = self.socket.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big")

    def close(self):
        self.socket.close()
