import re
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from dev.settings import ROOT

UPGRADE = ROOT / "deploy" / "upgrade"


def test_github_ci_runs_every_required_check():
    must_pass = re.findall("^make .*", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    run = re.findall("run: (make .*)", (ROOT / ".github/workflows/ci.yml").read_text())

    assert must_pass and set(must_pass) <= set(run)


def test_ci_tests_each_python_version_that_the_kit_supports():
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "kit/pyproject.toml").read_text())

    tested = re.findall(r'- \{ python: "(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text())

    assert named and tested == named


def test_the_nightly_workflow_fetches_the_tags_and_tries_an_upgrade():
    nightly = (ROOT / ".github/workflows/nightly.yml").read_text()

    assert "- cron:" in nightly and "fetch-depth: 0 " in nightly and "run: make test-upgrade\n" in nightly


@pytest.fixture
def check_tag(tmp_path):
    """`check_tag(tag)` runs the first step of release.yml, with a passed CI, and returns its output."""
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    script = dedent(re.search(r"- id: version\n +run: \|\n((?: {10}.*\n)+)", workflow)[1])
    (tmp_path / "gh").write_text("#!/bin/sh\necho 1\n")
    (tmp_path / "gh").chmod(0o755)

    def check_tag(tag):
        settings = {"GITHUB_REF_NAME": tag, "GITHUB_OUTPUT": str(tmp_path / "output"), "REGISTRY": "ghcr.io/example"}
        path = f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin"
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, env={**settings, "PATH": path}, cwd=ROOT, capture_output=True, text=True)
        return done.stdout or (tmp_path / "output").read_text()

    return check_tag


@pytest.mark.parametrize(("prefix", "folder"), [("v", "."), ("kit-v", "kit")])
def test_a_release_of_the_shop_or_the_kit_has_the_version_of_its_pyproject(check_tag, prefix, folder):
    version = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"]

    assert check_tag(f"{prefix}{version}") == f"version={version}\n"
    assert f"{folder}/pyproject.toml says {version}." in check_tag(f"{prefix}99.0.0")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("REGISTRY", "the registry with the images and charts, like ghcr.io/example"),
        ("GITHUB_REPOSITORY", "the repository that released them, like example/forage"),
    ],
)
def test_deploy_upgrade_names_a_missing_variable_in_a_sentence(tmp_path, missing, sentence):
    settings = {"PATH": "/usr/bin:/bin", "REGISTRY": "ghcr.io/example", "GITHUB_REPOSITORY": "example/forage"}
    del settings[missing]

    done = subprocess.run([UPGRADE, "1.2.3", "values.yaml"], env=settings, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode != 0
    assert done.stderr.endswith(f"{missing}: {sentence}\n")


def test_a_deployment_has_time_for_every_step_of_helm():
    minutes = int(re.search(r"--timeout (\d+)m ", UPGRADE.read_text())[1])
    given = re.findall(r"timeout-minutes: (\d+)", (ROOT / ".github/workflows/deploy.yml").read_text())
    values = yaml.safe_load((ROOT / "deploy/helm/values.yaml").read_text())

    # The migration, the pods, and the rollback if they don't become ready.
    assert min(int(each) for each in given) > 3 * minutes
    assert values["migration"]["seconds"] < 60 * minutes


def test_the_chart_has_the_version_of_the_shop():
    chart = yaml.safe_load((ROOT / "deploy/helm/Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert (chart["version"], chart["appVersion"]) == (version, version)
