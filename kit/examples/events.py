"""What the two services tell each other. Both import it."""

from dataclasses import dataclass

from nameko_reliable.messages import Event


@dataclass(frozen=True, kw_only=True)
class CakeOrdered(Event):
    source = "cafe"
    name = "cake.ordered"
    # Its durable handlers, as (service, method). Each gets a copy in a queue of its own.
    subscribers = (("bakery", "bake"),)

    ticket_id: int
    cake: str


@dataclass(frozen=True, kw_only=True)
class CakeBaked(Event):
    source = "bakery"
    name = "cake.baked"
    subscribers = (("cafe", "serve"),)

    ticket_id: int
