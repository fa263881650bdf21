"""A private RabbitMQ node beside any other: its own cookie, name service, ports, data and logs."""

import shutil

from scripts.programs import find_rabbitmq
from scripts.settings import MANAGEMENT, write_private

# `localhost`, so that the data outlives a change of the machine's name.
NODE = "forage@localhost"
# Erlang's schedulers would otherwise spin while they wait, which a small machine feels.
NO_BUSY_WAITING = "+sbwt none +sbwtdcpu none +sbwtdio none"
LOOPBACK_ALONE = "-kernel inet_dist_use_interface {127,0,0,1}"


class RabbitMQ:
    def __init__(self, settings):
        self.settings = settings
        self.folder = settings.folder / "rabbitmq"

    def prepare(self):
        self.folder.mkdir(exist_ok=True)
        management_port = self.settings.ports.get(MANAGEMENT)
        plugins = "rabbitmq_management" if management_port else ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")
        cookie = self.folder / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, self.settings.secret("erlang-cookie"))
        # The account is made on the node's first start, and kept with its data.
        config = [
            f"listeners.tcp.1 = 127.0.0.1:{self.settings.ports['RABBITMQ_PORT']}",
            "default_user = forage",
            f"default_pass = {self.settings.secret('rabbitmq')}",
            "log.console = true",
            "log.console.level = warning",
            "log.console.use_colors = off",
            # A client that is killed is told of by the supervisor.
            "log.connection.level = error",
            "log.file = false",
        ]
        if management_port:
            config += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {management_port}"]
        write_private(self.folder / "rabbitmq.conf", "\n".join(config) + "\n")

    def command(self):
        return [str(find_rabbitmq() / "rabbitmq-server")]

    def name_service_command(self):
        """In the foreground, so that it is watched like the rest and ends with them."""
        return [shutil.which("epmd"), "-port", str(self.settings.epmd_port)]

    def environment(self):
        return {
            "HOME": str(self.folder),  # where Erlang keeps the cookie
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "ERL_EPMD_PORT": str(self.settings.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": NODE,
            "RABBITMQ_DIST_PORT": str(self.settings.distribution_port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.settings.ports["RABBITMQ_PORT"]),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{NO_BUSY_WAITING} {LOOPBACK_ALONE}",
            "RABBITMQ_LOG": "warning,-color",
            # Then the script becomes the node, with no shell between us and it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


def answers_amqp(uri, ssl=None):
    """ssl: as Kombu takes it."""
    from kombu import Connection

    transport = Connection(uri, ssl=ssl, connect_timeout=2).transport
    try:
        # One try: kombu's own `connect` would sleep before its second.
        transport.close_connection(transport.establish_connection())
    except OSError:
        return False
    return True
