"""Settings that are checked once, at start: a bad one ends the process with a sentence."""

from nameko.extensions import DependencyProvider


def required(config, name, hint):
    value = config.get(name)
    if not value:
        raise SystemExit(f"{name} is not set: {hint}")
    return value


def secret(config, name, least_bytes, hint):
    value = required(config, name, hint)
    if len(value.encode()) < least_bytes:
        raise SystemExit(f"{name} is too short: set {least_bytes} bytes or more, for example `openssl rand -hex 32`.")
    return value


def integer(config, name, lowest, highest):
    try:
        value = int(str(config.get(name)))
    except ValueError:
        value = None
    if value is None or not lowest <= value <= highest:
        raise SystemExit(f"{name} must be a whole number from {lowest} to {highest}, not {config.get(name)!r}.")
    return value


def amqp_uri(config):
    return required(config, "AMQP_URI", "the broker's address, like pyamqp://user:password@localhost:5672//.")


class Setting(DependencyProvider):
    """A whole number of the configuration, injected.

    settle_after_seconds = Setting("SETTLE_AFTER_SECONDS", lowest=0, highest=86400)
    """

    def __init__(self, name, lowest, highest):
        self.name, self.lowest, self.highest = name, lowest, highest

    def setup(self):
        self.value = integer(self.container.config, self.name, self.lowest, self.highest)

    def get_dependency(self, worker_ctx):
        return self.value
