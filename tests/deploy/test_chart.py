import copy
import re
import subprocess
from functools import cache
from secrets import token_hex

import pytest
import yaml

from contracts import every_event
from contracts.demo_settings import demo_settings
from contracts.settings import ShopSettings
from contracts.types import SERVICES
from dev import chart
from dev.settings import ROOT
from gateway.server import STOP_SECONDS
from nameko_reliable.events import handler_queue
from nameko_reliable.settings import checked

helm_python = pytest.importorskip("helm_python", reason="Helm's library has no build for this machine")

OURS = [*SERVICES, "gateway"]
PARTS = [*OURS, "frontend"]
PLAIN = ("values.yaml",)
OPERATORS = ("values-operators.yaml",)
ISTIO = ("values-istio.yaml",)
OPERATORS_ISTIO = OPERATORS + ISTIO
# A value for every option, except those that need another component of the cluster.
FULL = {
    "settings": {
        name: "1" if definition.get("$ref") else definition.get("enum", [None, "https://provider.example.com"])[1]
        for name, definition in chart.schema(chart.CHART / "values.schema.json")["properties"]["settings"][
            "properties"
        ].items()
        if name != "ENVIRONMENT"
    },
    "secrets": {
        name: {"name": "optional"}
        for name in ("GOOGLE_CLIENT_SECRET", "JWT_SECRET_PREVIOUS", "RATE_LIMIT_STORAGE_URI", "SMTP_PASSWORD")
    },
    "tls": {"broker": {"name": "broker-ca"}, "database": {"name": "database-ca"}, "mail": {"name": "mail-ca"}},
}
every_values_file = pytest.mark.parametrize("values_files", chart.VALUES_FILES, ids="+".join)


@cache
def release(values_files):
    return chart.render(chart.values_of(values_files))


@cache
def full_release():
    return chart.render(chart.merged(chart.values_of(PLAIN), FULL))


def of_kind(documents, kind):
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def pods(documents):
    """{name of the Deployment or Job: its pod template}"""
    return {
        name: each["spec"]["template"]
        for kind in ("Deployment", "Job")
        for name, each in of_kind(documents, kind).items()
    }


def container(template):
    (only,) = template["spec"]["containers"]
    return only


def environment(documents, template):
    """{variable: its value, or the Secret and the key that contain it}"""
    found = {}
    for source in container(template).get("envFrom", []):
        found |= of_kind(documents, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    for each in container(template)["env"]:
        found[each["name"]] = each.get("value") or tuple(each["valueFrom"]["secretKeyRef"].values())
    return found


def settings_of_config():
    return set(re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / "config.yaml").read_text()))


def labels_of_all_pods(documents):
    found = [template["metadata"]["labels"] for template in pods(documents).values()]
    found += [{"cnpg.io/cluster": name} for name in of_kind(documents, "Cluster")]
    return found + [{"app.kubernetes.io/name": name} for name in of_kind(documents, "RabbitmqCluster")]


def selected(selector, documents):
    wanted = selector["matchLabels"].items()
    return [labels for labels in labels_of_all_pods(documents) if wanted <= labels.items()]


# Rendering


@every_values_file
def test_kubernetes_accepts_the_rendered_chart(values_files):
    assert list(chart.faults_of(values_files)) == []


def test_kubernetes_accepts_the_chart_with_all_options():
    assert [fault for document in full_release() for fault in chart.schema_faults(document)] == []


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "Cluster", "RabbitmqCluster", "PodMonitor"])
def test_a_field_unknown_to_kubernetes_is_reported(kind):
    document = copy.deepcopy(next(iter(of_kind(release(OPERATORS), kind).values())))
    document["spec"]["replica"] = 3

    assert any("replica" in fault for fault in chart.schema_faults(document))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 3}, "replica"),
        ({"processes": {"order": {"replicas": 3}}}, "order"),
        ({"processes": {"orders": {"replicas": "3"}}}, "replicas"),
        ({"secrets": {"ORDER_DB_URI": {"name": "orders", "key": "uri"}}}, "ORDER_DB_URI"),
        ({"networkPolicy": {"peers": {"order-db": []}}}, "order-db"),
        # Required, since the network policy uses it.
        ({"settings": {"SMTP_PORT": ""}}, "SMTP_PORT"),
        # Secrets belong under `secrets`, by reference.
        ({"settings": {"JWT_SECRET": "8d969eef6ecad3c29a3a629280e686cf"}}, "JWT_SECRET"),
        ({"secrets": {"JWT_SECRET": {"value": "8d969eef6ecad3c29a3a629280e686cf"}}}, "value"),
    ],
)
def test_a_value_unknown_to_the_chart_is_refused(values, named):
    with pytest.raises(helm_python.HelmError, match=named):
        chart.render(chart.merged(chart.values_of(PLAIN), values))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"url": ""}, "url is not set: the shop's own address"),
        ({"image": {"registry": ""}}, "image.registry is not set"),
        ({"settings": {"TRUSTED_PROXIES": ""}}, "settings.TRUSTED_PROXIES is not set"),
        ({"settings": {"SMTP_HOST": ""}}, "settings.SMTP_HOST is not set"),
        ({"settings": {"MAIL_FROM": ""}}, "settings.MAIL_FROM is not set"),
        ({"settings": {"GOOGLE_CLIENT_ID": "id"}}, "secrets.GOOGLE_CLIENT_SECRET.name is not set"),
        ({"settings": {"SMTP_USER": "shop"}}, "secrets.SMTP_PASSWORD.name is not set"),
        ({"secrets": {"ORDERS_DB_URI": {"name": ""}}}, "secrets.ORDERS_DB_URI.name is not set"),
        ({"ingress": {"tlsSecret": ""}}, "ingress.tlsSecret is not set"),
        ({"networkPolicy": {"peers": {"databases": []}}}, "networkPolicy.peers.databases is empty"),
        ({"rabbitmq": {"enabled": True}}, "rabbitmq.tlsSecret is not set"),
        ({"istio": {"enabled": True}}, "ingress.enabled must be false"),
    ],
)
def test_a_missing_value_is_named_in_a_sentence(values, sentence):
    with pytest.raises(helm_python.HelmError, match=sentence):
        chart.render(chart.merged(chart.values_of(PLAIN), values))


def test_the_longest_release_name_leaves_room_for_the_operators_suffixes():
    documents = chart.render(chart.values_of(OPERATORS), release="forage" + "x" * 47)

    # CloudNativePG accepts at most 50 characters.
    assert max(len(name) for name in of_kind(documents, "Cluster")) == 50


def test_a_packed_chart_renders_like_its_folder(tmp_path):
    archive = helm_python.package(chart.CHART, destination=tmp_path)

    with helm_python.Chart.load(archive) as packed, helm_python.Chart.load(chart.CHART) as folder:
        values = chart.values_of(OPERATORS)
        assert packed.render(values) == folder.render(values)
        assert [each["name"] for each in packed.files if each["name"].startswith(("ci/", "examples/"))] == []


def test_the_notes_make_the_first_administrator_in_an_interactive_shell():
    with helm_python.Chart.load(chart.folder()) as loaded:
        (notes,) = (text for path, text in loaded.render(chart.values_of(PLAIN)).items() if path.endswith("NOTES.txt"))

    (shell,) = re.findall("kubectl .* exec .*", notes)
    assert "--stdin --tty" in shell


def test_images_are_named_by_their_digests_if_these_are_set():
    digest = "sha256:" + "3" * 64
    values = chart.merged(chart.values_of(PLAIN), {"image": {"tag": "1.2.3", "digests": {"forage": digest}}})

    images = {name: container(template)["image"] for name, template in pods(chart.render(values)).items()}

    assert images.pop("forage-frontend") == "registry.example.com/shop/forage-frontend:1.2.3"
    assert set(images.values()) == {f"registry.example.com/shop/forage@{digest}"}


# Processes


@every_values_file
def test_no_container_has_more_rights_than_it_needs(values_files):
    for name, template in pods(release(values_files)).items():
        pod, only = template["spec"], container(template)
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }, name
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert only["resources"]["limits"].keys() == only["resources"]["requests"].keys() == {"cpu", "memory"}, name
        assert "tmp" in {each["name"] for each in only["volumeMounts"]}, name


@every_values_file
def test_every_part_has_a_deployment_probes_and_a_disruption_budget(values_files):
    documents = release(values_files)

    assert of_kind(documents, "Deployment").keys() == {f"forage-{part}" for part in PARTS}
    for name, deployment in of_kind(documents, "Deployment").items():
        only = container(deployment["spec"]["template"])
        ports = {port["name"] for port in only["ports"]}
        live, ready = ("/robots.txt",) * 2 if name == "forage-frontend" else ("/livez", "/readyz")
        for probe, path in (("startupProbe", live), ("livenessProbe", live), ("readinessProbe", ready)):
            assert only[probe]["httpGet"]["path"] == path, name
            assert only[probe]["httpGet"]["port"] in ports, name
        (budget,) = (
            each
            for each in of_kind(documents, "PodDisruptionBudget").values()
            if each["spec"]["selector"] == deployment["spec"]["selector"]
        )
        assert budget["spec"]["maxUnavailable"] == 1
        assert deployment["spec"]["template"]["spec"]["serviceAccountName"] in of_kind(documents, "ServiceAccount")


@every_values_file
def test_a_deployment_sets_its_replicas_unless_an_autoscaler_does(values_files):
    documents = release(values_files)

    scaled = [
        each["spec"]["scaleTargetRef"]["name"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for each in of_kind(documents, kind).values()
    ]

    fixed = [name for name, each in of_kind(documents, "Deployment").items() if "replicas" in each["spec"]]
    assert sorted(scaled + fixed) == sorted(f"forage-{part}" for part in PARTS)


def test_the_trial_values_fit_a_small_machine():
    documents = release(("values-dev.yaml",))
    requested = [container(each["spec"]["template"])["resources"] for each in of_kind(documents, "Deployment").values()]
    for kind in ("Cluster", "RabbitmqCluster"):
        requested += [each["spec"]["resources"] for each in of_kind(documents, kind).values()]

    units = {"m": 0.001, "Mi": 1, "Gi": 1024, "": 1}

    def total(resource):
        amounts = [re.fullmatch(r"([0-9]+)([a-zA-Z]*)", each["requests"][resource]) for each in requested]
        return sum(int(amount[1]) * units[amount[2]] for amount in amounts)

    assert len(requested) == len(PARTS) + len(SERVICES) + 1
    assert total("cpu") <= 2
    assert total("memory") <= 3 * 1024


def test_the_grace_period_is_longer_than_a_stop():
    for name, template in pods(release(PLAIN)).items():
        if name == "forage-migration":
            continue
        before = container(template).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        # Twice the time of the gateway, since a service ends its calls, mails and events one after the other.
        assert template["spec"]["terminationGracePeriodSeconds"] > before + 2 * STOP_SECONDS, name


def test_the_opened_ports_are_those_that_the_processes_listen_on():
    for part in OURS:
        template = pods(release(PLAIN))[f"forage-{part}"]
        settings = environment(release(PLAIN), template)
        opened = {port["name"]: str(port["containerPort"]) for port in container(template)["ports"]}
        own = {"http": settings["GATEWAY_PORT"]} if part == "gateway" else {}
        assert opened == {"metrics": settings["METRICS_PORT"], **own}
        # On another address, only the pod itself could reach it.
        assert settings["METRICS_HOST"] == "0.0.0.0"


# Settings and secrets


def test_the_chart_can_set_every_setting_of_config_yaml_and_no_other():
    set_somewhere = set()

    for part in OURS:
        set_somewhere |= environment(full_release(), pods(full_release())[f"forage-{part}"]).keys()

    assert set_somewhere == settings_of_config()


@every_values_file
def test_the_environment_contains_only_settings_and_the_parts_of_addresses(values_files):
    documents = release(values_files)
    parts = {"BROKER_USER", "BROKER_PASSWORD", *(f"{service.upper()}_DB_PASSWORD" for service in SERVICES)}

    for part in OURS:
        assert environment(documents, pods(documents)[f"forage-{part}"]).keys() <= settings_of_config() | parts


@pytest.mark.parametrize("values_files", [PLAIN, OPERATORS], ids="+".join)
def test_production_accepts_the_settings_of_the_chart(values_files):
    given = {}
    for part in OURS:
        given |= environment(release(values_files), pods(release(values_files))[f"forage-{part}"])
    secrets = {name: token_hex() for name, value in given.items() if isinstance(value, tuple)}
    schemes = {name: "postgresql+psycopg2" for name in secrets if name.endswith("_DB_URI")}
    schemes |= {"AMQP_URI": "amqps", "RATE_LIMIT_STORAGE_URI": "redis"}
    secrets |= {name: f"{schemes[name]}://forage:{token_hex()}@host.internal/1" for name in secrets & schemes.keys()}
    settings = {
        name: re.sub(r"\$\((\w+)\)", lambda found: secrets[found[1]], secrets.get(name, str(value)))
        for name, value in given.items()
    }

    shown = subprocess.run(
        [ROOT / ".venv" / "bin" / "nameko", "show-config", "--config", "config.yaml"],
        env={**settings, "PYTHONWARNINGS": "ignore"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )

    # This file exists only in the pod.
    config = {**yaml.safe_load(shown.stdout), "AMQP_SSL_CA": ""}
    assert (config["ENVIRONMENT"], config["FRONTEND_URL"]) == ("production", "https://shop.example.com")
    assert list(demo_settings(checked(ShopSettings(), config), settings)) == []


@pytest.mark.parametrize("part", PARTS)
def test_no_part_gets_a_secret_that_it_does_not_need(part):
    secrets = {
        name
        for name, value in environment(full_release(), pods(full_release())[f"forage-{part}"]).items()
        if isinstance(value, tuple)
    }

    database = {f"{part.upper()}_DB_URI"} if part in SERVICES else set()
    more = {
        "users": {"JWT_SECRET", "JWT_SECRET_PREVIOUS", "GOOGLE_CLIENT_SECRET"},
        "gateway": {"JWT_SECRET", "JWT_SECRET_PREVIOUS", "RATE_LIMIT_STORAGE_URI"},
        "notifications": {"SMTP_PASSWORD"},
    }
    assert secrets == ({"AMQP_URI"} | database | more.get(part, set()) if part in OURS else set())


@pytest.mark.parametrize("values_files", [PLAIN, OPERATORS], ids="+".join)
def test_the_migration_gets_only_the_database_addresses(values_files):
    documents = release(values_files)

    settings = environment(documents, pods(documents)["forage-migration"])

    uris = {f"{service.upper()}_DB_URI" for service in SERVICES}
    passwords = {f"{service.upper()}_DB_PASSWORD" for service in SERVICES}
    assert settings.keys() == (uris | passwords if values_files == OPERATORS else uris)


def test_the_migration_runs_before_the_processes_unless_the_chart_makes_the_databases():
    def hook(values_files):
        return of_kind(release(values_files), "Job")["forage-migration"]["metadata"]["annotations"]["helm.sh/hook"]

    assert hook(PLAIN) == "pre-install,pre-upgrade"
    assert hook(OPERATORS) == "post-install,pre-upgrade"


def test_the_readme_makes_every_secret_that_its_values_need():
    page = (chart.CHART / "README.md").read_text()
    values = yaml.safe_load(re.search("```yaml\n(.*?)```", page, re.DOTALL)[1])
    made = set(re.findall(r"create secret generic (\S+)", page))
    made |= {name.replace("$service", service) for name in made for service in SERVICES}

    documents = chart.render(values)

    sources = [
        source["secret"]
        for template in pods(documents).values()
        for volume in template["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    read = {
        value[0]
        for template in pods(documents).values()
        for value in environment(documents, template).values()
        if isinstance(value, tuple)
    }
    assert read | {source["name"] for source in sources} <= made
    # Its example addresses use TLS to the broker and the databases.
    assert {item["path"] for source in sources for item in source["items"]} == {"broker.crt", "database.crt"}


@every_values_file
def test_no_secret_appears_in_the_rendered_chart(values_files):
    documents = release(values_files)

    assert of_kind(documents, "Secret") == {}
    for template in pods(documents).values():
        for name, value in environment(documents, template).items():
            if re.search("PASSWORD|SECRET$|SECRET_PREVIOUS", name):
                assert isinstance(value, tuple), name
            # A password in an address must come from a variable.
            assert not re.search(r"://[^/@]*:(?!\$\()[^/@]*@", str(value)), name


def test_the_secret_store_fills_every_secret_that_no_operator_makes():
    documents = chart.render(chart.merged(chart.values_of(PLAIN), FULL | {"externalSecrets": {"enabled": True}}))

    filled = {
        (name, each["secretKey"])
        for name, secret in of_kind(documents, "ExternalSecret").items()
        for each in secret["spec"]["data"]
    }

    read = {
        value
        for template in pods(documents).values()
        for value in environment(documents, template).values()
        if isinstance(value, tuple)
    }
    assert filled == read


@pytest.mark.parametrize("part", [*OURS, "migration"])
def test_certificates_are_verified_against_mounted_authorities(part):
    for documents in (full_release(), release(OPERATORS)):
        template = pods(documents)[f"forage-{part}"]
        (mounted,) = (each for each in container(template)["volumeMounts"] if each["name"] == "tls")
        (volume,) = (each for each in template["spec"]["volumes"] if each["name"] == "tls")
        files = {
            f"{mounted['mountPath']}/{item['path']}"
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        settings = environment(documents, template)
        named = {value for name, value in settings.items() if name in ("AMQP_SSL_CA", "SMTP_CA")}
        named |= {re.search("sslrootcert=(.*)", value)[1] for value in settings.values() if "sslrootcert=" in value}

        # Addresses of existing databases name the file themselves, in a Secret.
        assert named == files - {"/etc/forage/tls/database.crt"}


def test_addresses_made_by_operators_require_tls():
    settings = environment(release(OPERATORS), pods(release(OPERATORS))["forage-orders"])

    assert settings["AMQP_URI"].startswith("amqps://$(BROKER_USER):$(BROKER_PASSWORD)@forage-rabbitmq.shop.svc:5671/")
    assert settings["ORDERS_DB_URI"] == (
        "postgresql+psycopg2://orders:$(ORDERS_DB_PASSWORD)@forage-orders-db-rw:5432/orders_db"
        "?sslmode=verify-full&sslrootcert=/etc/forage/tls/orders-db.crt"
    )
    # Kubernetes replaces only variables that are defined above.
    names = [each["name"] for each in container(pods(release(OPERATORS))["forage-orders"])["env"]]
    assert names.index("ORDERS_DB_PASSWORD") < names.index("ORDERS_DB_URI")


# Networks


@every_values_file
def test_every_policy_selects_something(values_files):
    documents = release(values_files)

    for name, policy in of_kind(documents, "NetworkPolicy").items():
        selectors = [policy["spec"]["podSelector"]]
        for rule in policy["spec"].get("ingress", []) + policy["spec"].get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                if "namespaceSelector" not in peer and "podSelector" in peer:
                    selectors.append(peer["podSelector"])
        for selector in selectors:
            assert selected(selector, documents), f"{name}: {selector}"


@pytest.mark.parametrize("values_files", [PLAIN, OPERATORS, ISTIO], ids="+".join)
def test_the_default_policy_refuses_unnamed_connections_of_every_pod(values_files):
    documents = release(values_files)

    everything = of_kind(documents, "NetworkPolicy")["forage-nothing-else"]["spec"]

    assert everything["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everything
    assert len(selected(everything["podSelector"], documents)) == len(pods(documents))


def test_only_prometheus_reaches_a_service_for_its_metrics():
    for service in SERVICES:
        assert of_kind(release(PLAIN), "NetworkPolicy")[f"forage-{service}"]["spec"]["ingress"] == []
        (rule,) = of_kind(release(OPERATORS), "NetworkPolicy")[f"forage-{service}"]["spec"]["ingress"]
        assert rule["ports"] == [{"port": "metrics"}]
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert not {f"forage-{service}" for service in SERVICES} & of_kind(release(PLAIN), "Service").keys()


def test_only_the_frontend_reaches_the_gateway():
    (rule,) = of_kind(release(PLAIN), "NetworkPolicy")["forage-gateway"]["spec"]["ingress"]

    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "frontend"


@pytest.mark.parametrize("service", SERVICES)
def test_only_its_owner_and_the_migration_reach_a_database(service):
    def destinations(part):
        rules = of_kind(release(OPERATORS), "NetworkPolicy")[f"forage-{part}"]["spec"]["egress"]
        return [peer.get("podSelector", {}).get("matchLabels", {}) for rule in rules for peer in rule["to"]]

    cluster = {"cnpg.io/cluster": f"forage-{service}-db"}
    policy = of_kind(release(OPERATORS), "NetworkPolicy")[f"forage-{service}-db"]["spec"]
    ours = [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        for rule in policy["ingress"]
        for peer in rule["from"]
        if peer.get("podSelector", {}).get("matchLabels", cluster) != cluster
    ]

    assert ours == [service, "migration"]
    assert [part for part in [*PARTS, "migration"] if cluster in destinations(part)] == [service, "migration"]


def egress(documents, part, destination):
    """The ports on which the part may connect to the destination, a NetworkPolicyPeer."""
    rules = of_kind(documents, "NetworkPolicy")[f"forage-{part}"]["spec"]["egress"]
    return [port["port"] for rule in rules if destination in rule["to"] for port in rule["ports"]]


@pytest.mark.parametrize("part", ["orders", "migration"])
def test_the_operators_database_is_reached_on_its_own_port(part):
    values = {"networkPolicy": {"ports": {"database": 6432}}}

    documents = chart.render(chart.merged(chart.values_of(OPERATORS_ISTIO), values))

    database = {"podSelector": {"matchLabels": {"cnpg.io/cluster": "forage-orders-db"}}}
    assert egress(documents, part, database) == [5432]
    annotations = pods(documents)["forage-orders"]["metadata"]["annotations"]
    assert annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] == "5671,5432,25"


def test_one_database_may_have_its_own_host():
    others, its_own = ({"ipBlock": {"cidr": cidr}} for cidr in ("10.0.3.10/32", "10.0.3.11/32"))

    documents = chart.render(
        chart.merged(chart.values_of(PLAIN), {"networkPolicy": {"peers": {"orders-db": [its_own]}}})
    )

    assert egress(documents, "orders", its_own) == egress(documents, "users", others) == [5432]
    assert egress(documents, "users", its_own) == egress(documents, "orders", others) == []


def test_a_process_has_its_own_number_of_replicas_or_the_common_one():
    values = {"replicas": 3, "processes": {"orders": {"replicas": 1}}}

    deployed = of_kind(chart.render(chart.merged(chart.values_of(PLAIN), values)), "Deployment")

    assert [deployed[f"forage-{part}"]["spec"]["replicas"] for part in ("orders", "users")] == [1, 3]


@pytest.mark.parametrize(
    ("issuer", "port"),
    [("", 443), ("https://id.example.com/realm", 443), ("https://id.example.com:8443/realm", 8443)],
)
def test_users_reaches_the_sign_in_provider_on_its_port(issuer, port):
    provider = {"ipBlock": {"cidr": "192.0.2.7/32"}}
    values = {"settings": {"OIDC_ISSUER": issuer}, "networkPolicy": {"peers": {"provider": [provider]}}}

    documents = chart.render(chart.merged(chart.merged(chart.values_of(PLAIN), FULL), values))

    assert egress(documents, "users", provider) == [port]


def test_only_the_frontend_is_reachable_from_outside():
    (rule,) = of_kind(release(PLAIN), "Ingress")["forage-frontend"]["spec"]["rules"]

    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"]) == ("shop.example.com", "/")
    assert path["backend"]["service"]["name"] == "forage-frontend"
    assert of_kind(release(PLAIN), "Service").keys() == {"forage-frontend", "forage-gateway"}


def test_in_the_mesh_only_the_ingress_gateway_reaches_the_frontend():
    for documents in (release(ISTIO), release(OPERATORS_ISTIO)):
        (rule,) = of_kind(documents, "NetworkPolicy")["forage-frontend"]["spec"]["ingress"]
        (gateway,) = of_kind(documents, "VirtualService")["forage-frontend"]["spec"]["gateways"]

        (peer,) = rule["from"]
        namespace = gateway.partition("/")[0]
        assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        example = yaml.safe_load((chart.CHART / "examples" / "istio.yaml").read_text())["metadata"]
        assert gateway == f"{example['namespace']}/{example['name']}"


@pytest.mark.parametrize("part", ["gateway", "frontend"])
def test_in_the_mesh_the_sidecars_are_trusted_proxies(part):
    def trusted(values_files):
        documents = release(values_files)
        return environment(documents, pods(documents)[f"forage-{part}"])["TRUSTED_PROXIES"]

    # A sidecar passes requests to its pod's process from these addresses.
    assert trusted(ISTIO) == "10.244.0.0/16,127.0.0.6,::6"
    assert trusted(PLAIN) == "10.244.0.0/16"


# Scaling, the mesh, alerts


def test_gateway_and_frontend_scale_by_their_cpu_up_to_the_maximum():
    values = {"processes": {"gateway": {"replicas": 3, "maxReplicas": 30}, "frontend": {"maxReplicas": 7}}}

    scaled = of_kind(chart.render(chart.merged(chart.values_of(PLAIN), values)), "HorizontalPodAutoscaler")

    assert {name: (each["spec"]["minReplicas"], each["spec"]["maxReplicas"]) for name, each in scaled.items()} == {
        "forage-gateway": (3, 30),
        "forage-frontend": (2, 7),
    }


def test_services_scale_by_the_queues_that_they_consume():
    scaled = {
        name.removeprefix("forage-"): {
            trigger["metadata"]["queueName"] for trigger in each["spec"]["triggers"] if trigger["type"] == "rabbitmq"
        }
        for name, each in of_kind(release(OPERATORS), "ScaledObject").items()
    }

    queues = {service: {f"rpc-{service}"} for service in SERVICES}
    for event in every_event():
        for service, method in (*event.subscribers, *event.retired_subscribers):
            queues[service].add(handler_queue(event, service, method, {}).name)
    assert scaled == queues


def test_the_mesh_repeats_no_write_and_no_websocket():
    services = of_kind(release(ISTIO), "VirtualService")

    assert services.keys() == {"forage-frontend", "forage-gateway"}
    for service in services.values():
        routes = {route["name"]: route for route in service["spec"]["http"]}
        assert routes["websocket"]["match"] == [{"uri": {"prefix": "/ws/"}}]
        assert routes["websocket"]["timeout"] == "0s"
        assert routes["reads"]["match"] == [{"method": {"regex": "GET|HEAD"}}]
        assert "match" not in routes["writes"]
        assert [routes[name]["retries"]["attempts"] for name in ("websocket", "reads", "writes")] == [0, 2, 0]


def test_the_mesh_lets_only_the_frontend_call_the_gateway_and_refuses_calls_to_services():
    policies = of_kind(release(ISTIO), "AuthorizationPolicy")

    metrics = {"to": [{"operation": {"ports": ["9100"]}}]}
    requests = {
        "from": [{"source": {"principals": ["*/ns/shop/sa/forage-frontend"]}}],
        "to": [{"operation": {"ports": ["3000"]}}],
    }
    assert {name: each["spec"]["rules"] for name, each in policies.items()} == {
        **{f"forage-{service}": [metrics] for service in SERVICES},
        "forage-gateway": [metrics, requests],
    }
    for name, each in policies.items():
        (labels,) = selected(each["spec"]["selector"], release(ISTIO))
        assert name == f"forage-{labels['app.kubernetes.io/component']}"


@pytest.mark.parametrize("values_files", [ISTIO, OPERATORS_ISTIO], ids="+".join)
def test_in_the_mesh_exactly_one_peer_authentication_selects_each_pod(values_files):
    documents = release(values_files)
    rules = [each["spec"] for each in of_kind(documents, "PeerAuthentication").values()]

    # Istio merges no policies: if two select a pod, the older one applies.
    ruled = [labels for rule in rules for labels in selected(rule["selector"], documents)]
    assert sorted(labels["app.kubernetes.io/component"] for labels in ruled) == sorted(PARTS)
    assert {rule["mtls"]["mode"] for rule in rules} == {"STRICT"}


def test_in_the_mesh_an_outside_prometheus_reads_the_metrics_in_plaintext():
    def plain(values):
        return {
            name: each["spec"]["portLevelMtls"]
            for name, each in of_kind(chart.render(values), "PeerAuthentication").items()
            if "portLevelMtls" in each["spec"]
        }

    watched = chart.values_of(OPERATORS_ISTIO)

    assert plain(watched) == {f"forage-{part}": {9100: {"mode": "PERMISSIVE"}} for part in OURS}
    assert plain(chart.merged(watched, {"istio": {"prometheusInMesh": True}})) == {}
    assert plain(chart.values_of(ISTIO)) == {}


def test_the_chart_installs_the_tested_alerts():
    rule = of_kind(release(OPERATORS), "PrometheusRule")["forage-monitoring"]

    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    assert rule["spec"] == yaml.safe_load(alerts)


def test_the_chart_names_the_scrape_job_as_the_alerts_do():
    documents = release(OPERATORS)
    monitor = of_kind(documents, "PodMonitor")["forage-monitoring"]["spec"]

    (job,) = set(re.findall('job="([^"]*)"', (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()))
    (excluded,) = monitor["selector"]["matchExpressions"]
    scraped = [
        labels
        for labels in selected(monitor["selector"], documents)
        if labels[excluded["key"]] not in excluded["values"]
    ]
    assert len(scraped) == len(OURS)
    assert {labels[monitor["jobLabel"]] for labels in scraped} == {job}
