"""Renders the Helm chart with its values files and holds the result against the schemas of Kubernetes.

`python -m dev.chart` says nothing when all is right. Rendering is done by Helm itself, as a library; what operators
bring is held against `deploy/helm/ci/crds`.
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
# Each alone, and those that go together.
VALUES_FILES = [
    *((path.name,) for path in sorted(CHART.glob("values*.yaml"))),
    ("values-operators.yaml", "values-istio.yaml"),
]
WARNING = 2
# Else a megabyte is read anew for each document.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)


def main():
    faults = [fault for names in VALUES_FILES for fault in faults_of(names)]
    for path in sorted((CHART / "examples").glob("*.yaml")):
        faults += [f"{path.name}: {fault}" for each in yaml.safe_load_all(path.read_text()) for fault in unfit(each)]
    if faults:
        sys.exit("\n".join(faults))


def faults_of(values_files):
    """Sentences about what is wrong with the chart and these of its values files."""
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
        for fault in unfit(document):
            yield f"{where}: {fault}"


@cache
def helm():
    try:
        import helm_python
    except ImportError:
        sys.exit("Helm's library (helm-python-sdk) has no build for this machine: the chart can't be checked here.")
    return helm_python


def folder():
    """A copy of the chart with files for its symbolic links: Helm writes a line about each that it follows."""
    return Path(_copy().name) / "forage"


@cache
def _copy():
    copy = TemporaryDirectory(prefix="forage-chart-")
    shutil.copytree(CHART, Path(copy.name) / "forage")
    return copy


def values_of(names):
    """Those of the files, the later over the earlier, over what every release must name itself."""
    values = yaml.safe_load((CHART / "ci" / "values.yaml").read_text())
    for name in names:
        # The chart's own lie below all others already.
        if name != "values.yaml":
            values = merged(values, yaml.safe_load((CHART / name).read_text()))
    return values


def merged(below, above):
    """As Helm does it: objects are merged, all else replaces."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def render(values, release="forage"):
    """The documents of a release. Raises HelmError with the chart's own sentence when a value is missing or unknown."""
    with helm().Chart.load(folder()) as chart:
        files = chart.render(values, name=release, namespace="shop")
    return [
        document
        for path, text in sorted(files.items())
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def unfit(document):
    """What Kubernetes would refuse, from the oldest that the chart is for to the newest that is known here."""
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
