"""The commands of README.md and docs/architecture.md, run as written."""

import re
import subprocess

import pytest

from dev.settings import ROOT
from nameko_reliable.testing.waiting import wait_for

pytestmark = pytest.mark.server


def block(page, language):
    [code] = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return code


def run(command, **options):
    shell = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert shell.returncode == 0, shell.stderr
    return shell.stdout


def test_the_first_order_by_curl(shop):
    commands = block("README.md", "sh").replace("http://localhost:3000", shop.gateway)

    printed = run(commands)

    assert '"status":"pending"' in printed
    # The README's last command may run before the event arrives. A reader would repeat it, too.
    assert "order_confirmation" in wait_for(lambda: _last_with_content(commands))


def _last_with_content(commands):
    login, (last,) = re.findall(r"^api=.*|^token=.*\n.*", commands, re.MULTILINE), commands.splitlines()[-1:]
    printed = run("\n".join([*login, last]))
    return printed if "order_confirmation" in printed else None


def test_an_order_by_nameko_shell(shop):
    lines = block("docs/architecture.md", "pycon").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    typed = [line.removeprefix(">>> ") for line in lines if line.startswith(">>> ")]

    printed = run("\n".join(commands).replace(".local/env", f"{shop.folder}/env"), input="\n".join([*typed, ""]))

    assert "'status': 'confirmed'" in printed
    assert "'notifications': [" in printed
    assert ">>> 'admin'" in printed
