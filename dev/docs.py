"""Builds the site of `make docs` in site/html: the pages of the shop and of the kit, and the kit's reference.

Zensical reads one folder. So the pages are copied to site/pages, with their paths, so their links work. The reference
has a page for each of the kit's modules, which mkdocstrings fills from the docstrings.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "site" / "pages"
SOURCES = ROOT / "kit" / "src" / "nameko_reliable"
COPIED = ["*.md", "LICENSE", "docs/**/*.*", "kit/*.md", "kit/LICENSE", "kit/docs/*.md", "deploy/helm/README.md"]
# Services import nothing from these.
INTERNAL = ["amqp/*", "names.py", "*/__init__.py", "__init__.py", "__main__.py"]


def main():
    shutil.rmtree(ROOT / "site", ignore_errors=True)
    for pattern in COPIED:
        for page in ROOT.glob(pattern):
            write(page.relative_to(ROOT), page.read_bytes())
    for module in modules():
        write(reference(module), f"::: nameko_reliable.{'.'.join(module.parts)}\n".encode())
    if missing := missing_references():
        sys.exit(f"zensical.toml has no entry in `nav` for {', '.join(missing)}.")
    build = [Path(sys.executable).with_name("zensical"), "build", "--clean", "--strict"]
    if subprocess.run(build, cwd=ROOT).returncode:
        sys.exit("The site could not be built; the lines above say why.")
    print("The site is in site/html.")


def write(path, content):
    page = PAGES / path
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_bytes(content)


def modules():
    """The kit's modules that the reference describes."""
    paths = (path.relative_to(SOURCES) for path in SOURCES.rglob("*.py"))
    return [path.with_suffix("") for path in paths if not any(path.match(pattern) for pattern in INTERNAL)]


def missing_references():
    """The pages of the reference that the site's menu does not have."""
    return sorted({str(reference(module)) for module in modules()} - set(menu()))


def reference(module):
    return Path("kit", "reference", *module.parts).with_suffix(".md")


def menu():
    """The pages of the site's menu."""

    def pages(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for each in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(each)

    return list(pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))


if __name__ == "__main__":
    main()
