import re

from scripts.settings import ROOT


def test_ci_on_github_runs_what_every_change_must_pass():
    must_pass = re.findall("^make .*", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    run = re.findall("run: (make .*)", (ROOT / ".github/workflows/ci.yml").read_text())

    assert must_pass and set(must_pass) <= set(run)
