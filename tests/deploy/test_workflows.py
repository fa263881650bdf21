import re
import subprocess
import tomllib

import pytest
import yaml

from dev.settings import ROOT

UPGRADE = ROOT / "deploy" / "upgrade"


def test_ci_on_github_runs_what_every_change_must_pass():
    must_pass = re.findall("^make .*", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    run = re.findall("run: (make .*)", (ROOT / ".github/workflows/ci.yml").read_text())

    assert must_pass and set(must_pass) <= set(run)


def test_the_tests_run_with_each_python_that_the_kit_names():
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "kit/pyproject.toml").read_text())

    tested = re.findall(r'- \{ python: "(3\.\d+)"', (ROOT / ".github/workflows/ci.yml").read_text())

    assert named and tested == named


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("REGISTRY", "where the images and charts lie, like ghcr.io/example"),
        ("GITHUB_REPOSITORY", "whose workflow has released them, like example/forage"),
    ],
)
def test_an_upgrade_says_in_a_sentence_what_it_must_be_told(tmp_path, missing, sentence):
    told = {"PATH": "/usr/bin:/bin", "REGISTRY": "ghcr.io/example", "GITHUB_REPOSITORY": "example/forage"}
    del told[missing]

    done = subprocess.run([UPGRADE, "1.2.3", "values.yaml"], env=told, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode != 0
    assert done.stderr.endswith(f"{missing}: {sentence}\n")


def test_a_deployment_may_take_as_long_as_helm_gives_each_of_its_steps():
    minutes = int(re.search(r"--timeout (\d+)m ", UPGRADE.read_text())[1])
    given = re.findall(r"timeout-minutes: (\d+)", (ROOT / ".github/workflows/deploy.yml").read_text())
    values = yaml.safe_load((ROOT / "deploy/helm/values.yaml").read_text())

    # The migration, the pods, and the way back when they aren't ready.
    assert min(int(each) for each in given) > 3 * minutes
    assert values["migration"]["seconds"] < 60 * minutes


def test_the_chart_is_of_the_version_that_is_released():
    chart = yaml.safe_load((ROOT / "deploy/helm/Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert (chart["version"], chart["appVersion"]) == (version, version)
