"""The events between the two services. Both import this module."""

from dataclasses import dataclass

from nameko_reliable.messages import Event


@dataclass(frozen=True, kw_only=True)
class CakeOrdered(Event):
    source = "cafe"
    name = "cake.ordered"
    # Its durable handlers, as (service, method). Each gets a copy in its own queue.
    subscribers = (("bakery", "bake"),)

    ticket_id: int
    cake: str


@dataclass(frozen=True, kw_only=True)
class CakeBaked(Event):
    source = "bakery"
    name = "cake.baked"
    subscribers = (("cafe", "serve"),)

    ticket_id: int
