"""What the documents say, held against what is there."""

import json
import re
import subprocess

import pytest

from app.config import Settings
from app.rag.parsers import SUPPORTED_SUFFIXES
from app.rag.parsers.formats import FORMATS

LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"```bash\n(.*?)```", re.DOTALL)
HEADING = re.compile(r"^(#+) ", re.MULTILINE)
FENCE = re.compile(r"```.*?```", re.DOTALL)
ROW = re.compile(r"^\| `((?:FOLIO|LLM)_\w+)` \| (.+?) \|", re.MULTILINE)
MANUAL = (
    "introduction",
    "getting-started",
    "documents",
    "asking",
    "models",
    "settings",
    "data-and-backup",
    "troubleshooting",
    "faq",
)
# in pieces, so that this file does not hold them itself
FORBIDDEN = re.compile(
    "|".join(
        [
            "pypi" + r"\.org",
            "python" + r"hosted\.org",
            "registry" + r"\.npmjs",
            "deb" + r"\.debian\.org",
            "(?<![\\w.])/wor" + "k/",
            "/opt/" + "(?:wheels|pypi)",
        ]
    )
)
BINARY = {".png", ".jpg", ".ico", ".woff2", ".pdf", ".docx", ".pptx", ".xlsx", ".gz", ".bin"}


def tracked_files(root):
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, timeout=30, check=True
    )
    return [root / name for name in done.stdout.split("\0") if name]


def documents(root):
    return [path for path in tracked_files(root) if path.suffix == ".md" and path.is_file()]


def setting_rows():
    rows = {}
    for name, field in Settings.model_fields.items():
        default = "—" if field.default in (None, "") else f"`{field.default}`"
        rows[field.validation_alias or f"FOLIO_{name.upper()}"] = default
    return rows


def test_links_between_documents_lead_somewhere(root):
    broken = [
        f"{path.relative_to(root)}: {link}"
        for path in documents(root)
        for link in LINK.findall(FENCE.sub("", path.read_text()))
        if "://" not in link and not link.startswith("#")
        if not (path.parent / link.partition("#")[0]).exists()
    ]
    assert not broken


def test_commands_that_the_documents_give_exist(root):
    commands = {
        command
        for path in documents(root)
        for block in CODE.findall(path.read_text())
        for command in re.findall(r"^\S*?(\./scripts/[\w-]+)", block, re.MULTILINE)
    }
    assert {"./scripts/start", "./scripts/test", "./scripts/init-data"} <= commands
    for command in commands:
        assert (root / command).stat().st_mode & 0o111, command


def test_each_readme_names_both_commands(root):
    for name in ("README.md", "README.zh-CN.md"):
        text = (root / name).read_text()
        assert "./scripts/start" in text
        assert "./scripts/test" in text


@pytest.mark.parametrize("name", MANUAL)
def test_the_manual_says_the_same_in_both_languages(root, name):
    english = (root / "docs" / "manual" / f"{name}.md").read_text()
    chinese = (root / "docs" / "zh" / f"{name}.md").read_text()
    assert HEADING.findall(FENCE.sub("", english)) == HEADING.findall(FENCE.sub("", chinese))
    names = re.compile(r"`((?:FOLIO|LLM|MILVUS)_\w+)(?:=[^`]*)?`")
    assert set(names.findall(english)) == set(names.findall(chinese))
    assert len(FENCE.findall(english)) == len(FENCE.findall(chinese))


def test_the_chart_is_explained_in_both_languages(root):
    english = (root / "docs" / "kubernetes.md").read_text()
    chinese = (root / "docs" / "zh" / "kubernetes.md").read_text()
    assert HEADING.findall(FENCE.sub("", english)) == HEADING.findall(FENCE.sub("", chinese))
    assert len(FENCE.findall(english)) == len(FENCE.findall(chinese))


def test_the_manual_has_no_other_files(root):
    for folder, extra in (("manual", set()), ("zh", {"api", "kubernetes", "reader", "scaling"})):
        assert {path.stem for path in (root / "docs" / folder).iterdir()} == {*MANUAL, *extra}


@pytest.mark.parametrize("folder", ["manual", "zh"])
def test_the_list_of_settings_is_whole_and_its_defaults_are_right(root, folder):
    text = (root / "docs" / folder / "settings.md").read_text()
    assert {
        name: default for name, default in ROW.findall(text) if name in setting_rows()
    } == setting_rows()


def test_settings_that_the_documents_name_exist(root):
    known = {*setting_rows(), "FOLIO_PYTHON", "FOLIO_TORCH_INDEX_URL", "FOLIO_WEB_PORT"}
    known |= {"FOLIO_CPUS", "FOLIO_MEMORY", "FOLIO_IMAGE", "FOLIO_FRONTEND_IMAGE"}
    known |= {"FOLIO_CUDA_IMAGE", "FOLIO_ACCELERATOR"}
    unknown = {
        f"{path.relative_to(root)}: {name}"
        for path in documents(root)
        for name in re.findall(r"\b((?:FOLIO|LLM)_[A-Z_]+)\b", path.read_text())
        if name not in known
    }
    assert not unknown


@pytest.mark.parametrize(
    ("path", "heading"),
    [("manual/documents.md", "## File formats"), ("zh/documents.md", "## 支持哪些文件格式")],
)
def test_the_formats_in_the_manual_are_those_that_the_parsers_read(root, path, heading):
    section = (root / "docs" / path).read_text().partition(heading)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    listed = set(re.findall(r"`(\.\w+)`", "\n".join(rows)))
    named = {suffix for f in FORMATS if f.module != "code" for suffix in f.suffixes}
    assert named <= listed <= SUPPORTED_SUFFIXES


def test_sample_questions_are_four_in_each_language(root):
    questions = json.loads((root / "docs" / "sample_questions.json").read_text())
    assert set(questions) == {"en", "zh"}
    assert {len(set(asked)) for asked in questions.values()} == {4}
    assert all(re.search("[\u4e00-\u9fff]", question) for question in questions["zh"])


def test_every_decision_has_its_number_and_parts(root):
    paths = sorted((root / "docs" / "decisions").glob("*.md"))
    assert len(paths) >= 11
    for number, path in enumerate(paths, 1):
        text = path.read_text()
        assert path.name.startswith(f"{number:03}-")
        assert text.startswith(f"# {number:03}: ")
        for part in ("## Context", "## Decision", "## Consequences"):
            assert part in text


def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine(root):
    found = [
        f"{path.relative_to(root)}: {match[0]}"
        for path in tracked_files(root)
        if path.is_file() and path.suffix not in BINARY
        for match in [FORBIDDEN.search(path.read_text(encoding="utf-8", errors="replace"))]
        if match
    ]
    assert not found
