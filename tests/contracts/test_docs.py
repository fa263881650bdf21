import re

import pytest

from scripts.settings import ROOT

FOLDERS = "contracts|extensions|services|gateway|templates|migrations|scripts|tests|docs"
# docs/extending.md names what its reader is about to write.
PAGES = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page.name != "extending.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())

    assert [path for path in named if not (ROOT / path).exists()] == []
