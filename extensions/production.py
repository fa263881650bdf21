"""What a process must not start with in production: what is right for trying things out, and for nothing else.

    class Orders:
        name = "orders"
        production = Production(demo_settings)

    def demo_settings(config, environment):
        if environment.get("DEMO_PASSWORD"):
            yield "DEMO_PASSWORD must not be set: there are no demo accounts in production."

Every process judges the whole configuration, not only what it uses itself: one list of sentences
says all there is to mend.
"""

import os

from nameko.extensions import DependencyProvider

from extensions.settings import one_of


class Production(DependencyProvider):
    """Ends the process with a list when ENVIRONMENT is production and the configuration is not fit for it.

    reasons: of (config, the process's environment), sentences that say what stands against it.
    """

    def __init__(self, reasons):
        self.reasons = reasons

    def bind(self, container, attr_name):
        # Before any setup, so that no other sentence comes first.
        refuse_unfit(self.reasons, container.config, os.environ)
        return super().bind(container, attr_name)


def refuse_unfit(reasons, config, environment):
    """Raise SystemExit with all that stands against production."""
    if one_of(config, "ENVIRONMENT", "development", "production") == "production":
        sentences = list(reasons(config, environment))
        if sentences:
            raise SystemExit("\n".join(["ENVIRONMENT is production, but:", *(f"- {each}" for each in sentences)]))
