import re

import pytest

from dev import docs
from dev.settings import ROOT

FOLDERS = "contracts|kit|services|gateway|frontend|templates|migrations|dev|ops|benchmarks|tests|docs"
ALL = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
# CHANGELOG.md names files of the past, docs/extending.md files that its reader will write.
PAGES = [page for page in ALL if page.name not in ("CHANGELOG.md", "extending.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_named_in_a_page_exists(page):
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())

    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_name_in_the_table_of_rules_is_in_the_file_before_it():
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Where each rule is in the code")[2]

    named = [
        (path, name)
        for cell in re.findall(r"^\| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
        for path, rest in re.findall(r"`([\w/]+\.py)`((?:(?!`[\w/]+\.py`).)*)", cell)
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", rest)
    ]

    assert named
    assert [pair for pair in named if not set(pair[1].split(".")) <= words_in(pair[0])] == []


def test_every_module_of_the_kit_is_in_the_menu_of_the_site():
    assert docs.missing_references() == []


def words_in(path):
    return set(re.findall(r"\w+", (ROOT / path).read_text()))


@pytest.mark.parametrize(
    "page",
    [*ALL, *(ROOT / "kit").glob("*.md"), *(ROOT / "kit" / "docs").glob("*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_in_a_page_leads_to_an_existing_file_and_heading(page):
    linked = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text())

    assert [link for link in linked if not target_exists(page, *link)] == []


def target_exists(page, path, heading):
    target = (page.parent / path) if path else page
    return target.exists() and (not heading or heading in headings(target))


def headings(page):
    """The anchors that GitHub makes of the headings."""
    lines = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines]


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"

    named = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text())

    assert sorted(named) == sorted(page.name for page in folder.glob("*.md") if page.name != "README.md")


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=lambda page: page.name)
def test_every_decision_has_a_number_a_date_and_a_status(page):
    head = re.match(r"# (\d+)\. .+\n\n\d{4}-\d\d-\d\d · (accepted|replaced by \d+)", page.read_text())

    assert head and int(head[1]) == int(page.name[:4])
