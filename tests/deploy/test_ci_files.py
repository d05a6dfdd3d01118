"""The files of continuous integration: linted, whole, and no wider than they need to be."""

import http.server
import os
import re
import shutil
import subprocess
import threading

import pytest
import yaml

WORKFLOWS = ("ci.yml", "release.yml")
GITLAB_KEYS = {"stages", "workflow", "variables", "default"}
# a script of ours, as a step calls it
OWN_SCRIPT = re.compile(r"(?:^|\s)\./(\S+)")
PINNED = re.compile(r"[\w./-]+@v?\d+\.\d+\.\d+$")
CHANGELOG = """# Changelog

## [Unreleased]

- Not yet.

## [1.2.3] - 2026-01-31

### Added

- A thing.

## [1.2.2] - 2026-01-01

- Older.
"""


@pytest.fixture
def workflows(root):
    folder = root / ".github" / "workflows"
    return {name: yaml.safe_load((folder / name).read_text()) for name in WORKFLOWS}


@pytest.fixture
def gitlab(root):
    return yaml.safe_load((root / ".gitlab-ci.yml").read_text())


@pytest.fixture
def gitlab_jobs(gitlab):
    return {
        name: job
        for name, job in gitlab.items()
        if name not in GITLAB_KEYS and not name.startswith(".")
    }


def steps_of(workflows):
    jobs = [job for workflow in workflows.values() for job in workflow["jobs"].values()]
    return [step for job in jobs for step in job.get("steps", [])]


def lint(root, *files):
    return subprocess.run(
        [root / "scripts" / "lint-workflows", *files], capture_output=True, text=True, timeout=100
    )


def test_actionlint_finds_nothing(root):
    done = lint(root, *(root / ".github" / "workflows" / name for name in WORKFLOWS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_really_reads_the_files(root, tmp_path):
    text = (root / ".github" / "workflows" / "release.yml").read_text()
    broken = tmp_path / "release.yml"
    broken.write_text(text.replace("needs: images", "needs: imags"))
    done = lint(root, broken)
    assert done.returncode == 1
    assert "imags" in done.stdout


def test_actions_are_pinned_to_a_version(workflows):
    used = [step["uses"] for step in steps_of(workflows) if "uses" in step]
    assert used
    assert [action for action in used if not PINNED.match(action)] == []


def test_workflows_may_only_read_and_each_wider_right_belongs_to_one_job(workflows):
    assert [workflow["permissions"] for workflow in workflows.values()] == [
        {"contents": "read"},
        {"contents": "read"},
    ]
    wider = {
        (name, right)
        for workflow in workflows.values()
        for name, job in workflow["jobs"].items()
        for right, level in job.get("permissions", {}).items()
        if level == "write"
    }
    assert wider == {("images", "id-token"), ("release", "contents")}


def test_every_job_has_a_time_limit_and_every_workflow_a_group(workflows):
    jobs = [job for workflow in workflows.values() for job in workflow["jobs"].values()]
    assert all("timeout-minutes" in job for job in jobs if "uses" not in job)
    assert all("concurrency" in workflow for workflow in workflows.values())


def test_nothing_is_published_before_the_checks(workflows, gitlab_jobs):
    jobs = workflows["release.yml"]["jobs"]
    assert jobs["checks"]["uses"] == "./.github/workflows/ci.yml"
    assert (jobs["images"]["needs"], jobs["release"]["needs"]) == ("checks", "images")
    assert set(gitlab_jobs["publish"]["needs"]) == {"test", "notes", "images", "smoke", "scan"}


def test_gitlab_jobs_have_stages_and_needs_that_exist(gitlab, gitlab_jobs):
    stages = gitlab["stages"]
    assert {job["stage"] for job in gitlab_jobs.values()} == set(stages)
    for name, job in gitlab_jobs.items():
        needs = job.get("needs", [])
        assert set(needs) <= set(gitlab_jobs), name
        assert all(
            stages.index(gitlab_jobs[need]["stage"]) <= stages.index(job["stage"]) for need in needs
        )
        assert job.get("extends", ".docker") in gitlab


def test_only_a_tag_publishes_on_gitlab(gitlab_jobs):
    on_tag = [{"if": "$CI_COMMIT_TAG"}]
    assert {n for n, job in gitlab_jobs.items() if job.get("rules") == on_tag} == {
        "notes",
        "publish",
        "release",
    }


def test_scripts_that_are_called_exist_and_can_be_run(root, workflows, gitlab_jobs):
    lines = [step.get("run", "") for step in steps_of(workflows)]
    lines += [line for job in gitlab_jobs.values() for line in job["script"]]
    called = {match for line in lines for match in OWN_SCRIPT.findall(line)}
    assert called == {".ci/run", ".ci/smoke", "scripts/release-notes"}
    assert all(os.access(root / script, os.X_OK) for script in called)


def test_what_is_built_exists(root, workflows):
    contexts = {
        step["with"]["context"] for step in steps_of(workflows) if "context" in step.get("with", {})
    }
    contexts |= {
        row["context"]
        for row in workflows["release.yml"]["jobs"]["images"]["strategy"]["matrix"]["include"]
    }
    contexts.discard("${{ matrix.context }}")
    assert contexts == {".", "frontend"}
    assert all((root / context / "Dockerfile").is_file() for context in contexts)


class Release:
    """A copy of the script with a changelog and versions of its own."""

    def __init__(self, root, folder):
        self.folder = folder
        (folder / "scripts").mkdir()
        for name in ("_common.sh", "release-notes"):
            shutil.copy(root / "scripts" / name, folder / "scripts" / name)
        self.write("CHANGELOG.md", CHANGELOG)
        self.write("app/__init__.py", '__version__ = "1.2.3"\n')
        self.write("pyproject.toml", 'version = "1.2.3"\n')
        self.write("frontend/package.json", '{\n  "version": "1.2.3"\n}\n')

    def write(self, name, text):
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)

    def notes(self, version):
        command = [self.folder / "scripts" / "release-notes", version]
        return subprocess.run(command, capture_output=True, text=True, timeout=20)


@pytest.fixture
def release(root, tmp_path):
    return Release(root, tmp_path)


@pytest.mark.parametrize("version", ["1.2.3", "v1.2.3"])
def test_notes_are_what_the_changelog_says_of_the_version(release, version):
    done = release.notes(version)
    assert (done.returncode, done.stdout) == (0, "### Added\n\n- A thing.\n")


def test_a_version_that_the_code_does_not_bear_has_no_notes(release):
    done = release.notes("1.2.2")
    assert done.returncode == 1
    assert "app/__init__.py bears another version than 1.2.2" in done.stderr


def test_a_version_that_one_file_forgot_has_no_notes(release):
    release.write("frontend/package.json", '{\n  "version": "1.2.2"\n}\n')
    assert "frontend/package.json bears another" in release.notes("1.2.3").stderr


def test_a_version_without_changes_has_no_notes(release):
    release.write("CHANGELOG.md", CHANGELOG.replace("[1.2.3]", "[1.2.30]"))
    done = release.notes("1.2.3")
    assert done.returncode == 1
    assert "CHANGELOG.md says nothing of 1.2.3" in done.stderr


class Stack:
    """What `.ci/smoke` meets: a `docker` that notes what it is asked, and a frontend."""

    def __init__(self, folder):
        self.content = "An appliance."
        self.log = folder / "docker.log"
        program = folder / "docker"
        program.write_text(f'#!/bin/sh\necho "$@" >>{self.log}\n')
        program.chmod(0o755)
        stack = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(b"<!doctype html><html></html>")

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                self.reply(b'{"choices": [{"message": {"content":"%s"}}]}' % stack.content.encode())

            def reply(self, body):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()
        self.env = os.environ | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "SMOKE_URL": f"http://127.0.0.1:{self.server.server_address[1]}",
        }

    def smoke(self, root):
        return subprocess.run(
            [root / ".ci" / "smoke"], env=self.env, capture_output=True, text=True, timeout=30
        )

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    yield stack
    stack.close()


def test_the_smoke_test_passes_with_an_answer_and_takes_the_stack_down(root, stack):
    done = stack.smoke(root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the appliance answers"
    up, down = stack.log.read_text().splitlines()
    assert up.startswith("compose up --detach --wait")
    assert down.startswith("compose down --volumes")


def test_the_smoke_test_fails_without_an_answer_and_shows_the_logs(root, stack):
    stack.content = ""
    done = stack.smoke(root)
    assert done.returncode == 1
    calls = [line.split()[1] for line in stack.log.read_text().splitlines()]
    assert calls == ["up", "logs", "down"]
