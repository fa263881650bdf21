"""Renders the Helm chart with its values files and validates the result against the schemas of Kubernetes.

`python -m dev.chart` prints only faults. Helm itself renders, as a library. Resources of operators are validated
against `deploy/helm/ci/crds`.
"""

import json
import re
import shutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import jsonschema
import kubernetes_validate
import kubernetes_validate.utils
import yaml

from dev.settings import ROOT

CHART = ROOT / "deploy" / "helm"
CRDS = CHART / "ci" / "crds"
# Each by itself, and the combinations that are supported.
VALUES_FILES = [
    *((path.name,) for path in sorted(CHART.glob("values*.yaml"))),
    ("values-operators.yaml", "values-istio.yaml"),
]
WARNING = 2
# Without the cache a megabyte is read again for each document.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)


def main():
    faults = [fault for names in VALUES_FILES for fault in faults_of(names)]
    for path in sorted((CHART / "examples").glob("*.yaml")):
        documents = yaml.safe_load_all(path.read_text())
        faults += [f"{path.name}: {fault}" for document in documents for fault in schema_faults(document)]
    if faults:
        sys.exit("\n".join(faults))


def faults_of(values_files):
    """Sentences about the faults of the chart with these values files."""
    where = ", ".join(values_files)
    values = values_of(values_files)
    try:
        report = helm().lint(folder(), values, strict=True)
        documents = render(values)
    except helm().HelmError as error:
        yield f"{where}: {error}"
        return
    for message in report["messages"]:
        if message["severity"] >= WARNING:
            yield f"{where}: {message['path']}: {message['error']}"
    names = Counter((each["kind"], each["metadata"]["name"]) for each in documents)
    for kind, name in (each for each, times in names.items() if times > 1):
        yield f"{where}: there are two {kind}s named {name}"
    for document in documents:
        for fault in schema_faults(document):
            yield f"{where}: {fault}"


@cache
def helm():
    try:
        import helm_python
    except ImportError:
        sys.exit("Helm's library (helm-python-sdk) has no build for this machine, so the chart can't be checked here.")
    return helm_python


def folder():
    """A copy of the chart with files in place of symbolic links: Helm prints a line for each link that it follows."""
    return Path(_copy().name) / "forage"


@cache
def _copy():
    copy = TemporaryDirectory(prefix="forage-chart-")
    shutil.copytree(CHART, Path(copy.name) / "forage")
    return copy


def values_of(names):
    """The values of the files, merged in this order over ci/values.yaml, which has all required values."""
    values = yaml.safe_load((CHART / "ci" / "values.yaml").read_text())
    for name in names:
        # Helm itself merges all others over the chart's own.
        if name != "values.yaml":
            values = merged(values, yaml.safe_load((CHART / name).read_text()))
    return values


def merged(below, above):
    """Merge like Helm: objects are merged, all other values are replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def render(values, release="forage"):
    """The documents of a release. Raises HelmError with the chart's sentence if a value is missing or unknown."""
    with helm().Chart.load(folder()) as chart:
        files = chart.render(values, name=release, namespace="shop")
    return [
        document
        for path, text in sorted(files.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def schema_faults(document):
    """The faults for which Kubernetes would refuse a document.

    Checks the oldest version that the chart supports and the newest whose schemas are installed.
    """
    where = f"{document['kind']} {document['metadata']['name']}"
    crd = CRDS / f"{document['kind']}.json"
    if crd.exists():
        errors = jsonschema.Draft202012Validator(schema(crd)).iter_errors(document)
        return [f"{where}: {error.json_path}: {error.message}" for error in errors]
    faults = []
    for version in (oldest_kubernetes(), kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except jsonschema.ValidationError as error:
            faults.append(f"{where}, Kubernetes {version}: {error.json_path}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            faults.append(f"{where}: {error.message}")
    return faults


@cache
def schema(path):
    return json.loads(path.read_text())


@cache
def oldest_kubernetes():
    return re.search(r'^kubeVersion: ">=(\d+\.\d+)', (CHART / "Chart.yaml").read_text(), re.MULTILINE)[1]


if __name__ == "__main__":
    main()
