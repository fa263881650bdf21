"""A client of the WebSocket feed, which may be sent news of any product at any time."""

import json

import websocket


class Feed:
    """A WebSocket that speaks JSON. Other tests change products too: only `hear_until` and `hears_nothing_more` see it.

    options: of `websocket.create_connection`.
    """

    def __init__(self, url, **options):
        self.socket = websocket.create_connection(url, timeout=30, **options)

    def say(self, **message):
        self.socket.send(json.dumps(message))

    def hear(self):
        """The next message that is no news of a product."""
        while True:
            message = json.loads(self.socket.recv())
            if message["type"] != "product":
                return message

    def hear_until(self, kind):
        """The next message of that type; what comes before is passed over."""
        while True:
            message = json.loads(self.socket.recv())
            if message["type"] == kind:
                return message

    def watch(self, *products):
        """Hear of these products alone. Returns when it holds."""
        self.say(type="watch", product_ids=[product["id"] for product in products])
        self.say(type="ping")
        self.hear_until("pong")

    def hears_nothing_more(self):
        """Whether nothing but the answer to this ping comes, no news of a product either."""
        self.say(type="ping")
        return json.loads(self.socket.recv()) == {"type": "pong"}

    def closing_code(self):
        """The code that the server closes with; what comes before is passed over."""
        while True:
            opcode, data = self.socket.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big")

    def close(self):
        self.socket.close()
