"""The image's entrypoint: it reads settings from files, and its command becomes the container's main process."""

import os
import re
import subprocess

import pytest

from dev.settings import ROOT

ENTRYPOINT = ROOT / "deploy" / "docker" / "entrypoint"
PRINT_SECRET = ("sh", "-c", 'printf "%s" "$JWT_SECRET"')


def run(*command, **settings):
    return subprocess.run(
        [ENTRYPOINT, *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("value", ["plain", "", "two words", "'\"$(id)`id`\\n#", "two\nlines", "1234567890"])
def test_a_setting_is_read_unchanged_from_its_file(tmp_path, value):
    (tmp_path / "secret").write_text(f"{value}\n")

    assert run(*PRINT_SECRET, JWT_SECRET_FILE=str(tmp_path / "secret")).stdout == value


def test_every_setting_of_the_configuration_can_come_from_a_file(tmp_path):
    (tmp_path / "secret").write_text("shared value")
    names = set(re.findall(r"\$\{([A-Z0-9_]+)", (ROOT / "config.yaml").read_text()))

    done = run("env", **{f"{name}_FILE": str(tmp_path / "secret") for name in names})

    assert {f"{name}=shared value" for name in names} <= set(done.stdout.splitlines())
    assert "_FILE=" not in done.stdout


def test_a_setting_without_a_file_keeps_its_value():
    assert run(*PRINT_SECRET, JWT_SECRET="given").stdout == "given"


def test_a_setting_given_both_directly_and_by_a_file_is_refused(tmp_path):
    (tmp_path / "secret").write_text("one")

    done = run(*PRINT_SECRET, JWT_SECRET="another", JWT_SECRET_FILE=str(tmp_path / "secret"))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "JWT_SECRET and JWT_SECRET_FILE are both set: keep one of them.\n"


def test_an_unreadable_file_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        done = run(*PRINT_SECRET, JWT_SECRET_FILE=str(path))

        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"JWT_SECRET_FILE is {path}, which is not a file that can be read.\n"


def test_the_command_replaces_the_entrypoint_process():
    with subprocess.Popen(
        [ENTRYPOINT, "sh", "-c", "echo $$"], cwd=ROOT, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE
    ) as process:
        assert int(process.stdout.read()) == process.pid
