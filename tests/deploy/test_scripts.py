"""The scripts: linted, and run in a small project of stand-ins for everything slow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

COMMANDS = (
    "start",
    "test",
    "check",
    "init-data",
    "build-frontend",
    "release-notes",
    "lint-workflows",
)
FAKE_APP = "import sys; print('app', sys.argv[1:], flush=True)\n"
FAKE_KERNELS = """import pathlib, sys
made = pathlib.Path(__file__).with_name("made")
if "--check" in sys.argv:
    sys.exit(not made.exists())
made.touch()
"""
FAKE_INSTALL = """#!/usr/bin/env bash
echo "$2" >>"$(dirname "$0")/../installed.txt"
sleep "${INSTALL_S:-0}"
if [ -n "${INSTALL_SAYS:-}" ]; then echo "$INSTALL_SAYS"; exit 1; fi
"""
FAKE_NPM = """#!/usr/bin/env bash
if [ "$1" = --version ]; then echo 10.0.0; exit; fi
echo "$*" >>"$NPM_LOG"
if [ "${!#}" = build ]; then mkdir -p "$2/dist"; echo built >"$2/dist/index.html"; fi
if [ "$3" = ci ]; then mkdir -p "$2/node_modules"; fi
"""
FAKE_NODE = "#!/usr/bin/env bash\nexit 0\n"
NEW_PYTHON = f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n'
OLD_PYTHON = "#!/usr/bin/env bash\nexit 1\n"


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def wait_for(is_so, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def group_is_alive(group):
    """Whether a process of the group runs; one that has ended may wait for its parent a while."""
    listing = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, timeout=10, check=True
    )
    rows = [line.split() for line in listing.stdout.splitlines()]
    return any(int(number) == group and state[0] != "Z" for number, state in rows)


class Project:
    """A copy of the scripts with stand-ins for the installer, Node and the appliance."""

    def __init__(self, root, folder):
        self.folder = folder
        shutil.copytree(root / "scripts", folder / "scripts")
        write_program(folder / "scripts" / "install-python", FAKE_INSTALL)
        (folder / "requirements.txt").write_text("torch==2.13.0\n")
        (folder / "app" / "scripts").mkdir(parents=True)
        (folder / "app" / "__main__.py").write_text(FAKE_APP)
        (folder / "app" / "scripts" / "initialize_data.py").write_text(FAKE_APP)
        self.kernels = folder / "app" / "engine" / "kernels" / "cpu" / "build.py"
        self.kernels.parent.mkdir(parents=True)
        self.kernels.write_text(FAKE_KERNELS)
        (folder / "frontend" / "src").mkdir(parents=True)
        (folder / "frontend" / "package.json").write_text("{}")
        (folder / "frontend" / "package-lock.json").write_text("{}")
        (folder / "frontend" / "src" / "main.ts").write_text("1")
        self.bin = folder / "bin"
        write_program(self.bin / "npm", FAKE_NPM)
        write_program(self.bin / "node", FAKE_NODE)
        write_program(self.bin / "python", NEW_PYTHON)

    def environment(self, **more):
        own = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "FOLIO_PYTHON": str(self.bin / "python"),
            "NPM_LOG": str(self.folder / "npm.txt"),
        }
        return own | {name: str(value) for name, value in more.items()}

    def start_process(self, *command, cwd=None, **more):
        return subprocess.Popen(
            [self.folder / "scripts" / command[0], *command[1:]],
            cwd=cwd or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(**more),
            start_new_session=True,
        )

    def run(self, *command, cwd=None, **more):
        process = self.start_process(*command, cwd=cwd, **more)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def need_an_installation(self):
        (self.folder / "requirements.txt").write_text(f"torch==2.13.0\n# {time.time()}\n")

    @property
    def num_installs(self):
        path = self.folder / "installed.txt"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def npm_calls(self):
        path = self.folder / "npm.txt"
        return [line.split()[2:] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def set_up_project(root, tmp_path_factory):
    """A project that has been started once: making its environment is the slow part."""
    project = Project(root, tmp_path_factory.mktemp("project"))
    project.first = project.run("start", "--port", "1234")
    return project


@pytest.fixture
def project(set_up_project):
    for name in ("installed.txt", "npm.txt"):
        (set_up_project.folder / name).unlink(missing_ok=True)
    return set_up_project


@pytest.fixture
def fresh(root, tmp_path):
    return Project(root, tmp_path)


def test_shellcheck_finds_nothing(root):
    scripts = sorted((root / "scripts").iterdir())
    done = subprocess.run(
        ["shellcheck", "--external-sources", *scripts, *sorted((root / ".ci").iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(root, name):
    done = subprocess.run(
        [root / "scripts" / name, "--help"] if name != "init-data" else [root / "scripts" / name],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert f"scripts/{name}" in done.stdout
    assert "shellcheck" not in done.stdout.splitlines()[0]


def test_the_first_start_sets_up_and_serves(set_up_project):
    code, output = set_up_project.first
    assert code == 0, output
    assert "==> Installing Python packages" in output
    assert "==> Building the frontend" in output
    assert "done in" in output
    assert output.splitlines()[-1] == "app ['serve', '--port', '1234']"


def test_a_second_start_installs_nothing(project):
    code, output = project.run("start")
    assert code == 0, output
    assert output.splitlines() == ["==> Starting Folio", "app ['serve']"]
    assert project.num_installs == 0
    assert project.npm_calls == []


def test_missing_kernels_are_compiled_once(project):
    project.kernels.with_name("made").unlink()
    assert "==> Compiling the engine's CPU kernels" in project.run("start")[1]
    assert "Compiling" not in project.run("start")[1]


def test_a_start_goes_on_without_kernels_that_cannot_be_compiled(project):
    project.kernels.write_text("import sys; sys.exit('no such instruction')")
    code, output = project.run("start")
    assert code == 0, output
    assert "no such instruction" in output
    assert "torch computes instead" in output
    assert output.splitlines()[-1] == "app ['serve']"


def test_changed_requirements_are_installed_again(project):
    project.need_an_installation()
    project.run("start")
    assert project.num_installs == 1
    assert project.npm_calls == []


def test_a_changed_page_is_built_again_without_a_new_npm_ci(project):
    (project.folder / "frontend" / "src" / "main.ts").write_text(str(time.time()))
    project.run("start")
    assert project.npm_calls == [["run", "build"]]


def test_a_changed_lock_file_is_installed_and_built(project):
    (project.folder / "frontend" / "package-lock.json").write_text(f'"{time.time()}"')
    project.run("start")
    assert [call[0] for call in project.npm_calls] == ["ci", "run"]


def test_options_reach_the_appliance_and_folders_are_the_callers(project, tmp_path):
    _, output = project.run(
        "start", "--data-dir", "mine", "--host=0.0.0.0", "--no-manual", cwd=tmp_path
    )
    given = f"app ['serve', '--data-dir', '{tmp_path}/mine', '--host=0.0.0.0', '--no-manual']"
    assert output.splitlines()[-1] == given


@pytest.mark.parametrize("arguments", [["--nonsense"], ["extra"], ["--port"]])
def test_wrong_arguments_stop_before_anything_happens(project, arguments):
    code, output = project.run("start", *arguments)
    assert code == 1
    assert "--help" in output
    assert "==>" not in output


def test_init_data_takes_paths_of_the_caller(project, tmp_path):
    (tmp_path / "papers").mkdir()
    code, output = project.run("init-data", "papers", "--collection", "x", cwd=tmp_path)
    assert code == 0, output
    assert output.splitlines()[-1] == f"app ['{tmp_path}/papers', '--collection', 'x']"


def test_two_starts_at_once_install_once(project):
    project.need_an_installation()
    processes = [project.start_process("start", INSTALL_S=2) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert project.num_installs == 1
    assert sum("waiting for it" in output for output in outputs) == 1


@pytest.mark.parametrize(
    ("message", "way_out"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError: Failed to establish", "A package index did not answer"),
        ("ERROR: No matching distribution found for torch", "Use Python 3.11 to 3.13"),
        ("something else", "The whole log is in"),
    ],
)
def test_a_failed_installation_shows_its_end_and_the_way_out(project, message, way_out):
    project.need_an_installation()
    code, output = project.run("start", INSTALL_SAYS=message)
    assert code == 1
    assert f"| {message}" in output
    assert way_out in output
    assert "Starting Folio" not in output


def test_after_a_failure_the_next_start_goes_on(project):
    project.need_an_installation()
    project.run("start", INSTALL_SAYS="broken")
    code, output = project.run("start")
    assert code == 0, output
    assert project.num_installs == 2


def test_a_python_without_venv_is_explained(fresh):
    write_program(
        fresh.bin / "python",
        f'#!/usr/bin/env bash\nif [ "$1 $2" = "-m venv" ]; then echo "ensurepip is not available";'
        f' exit 1; fi\nexec {sys.executable} "$@"\n',
    )
    code, output = fresh.run("start")
    assert code == 1
    assert "apt-get install python3-venv" in output


def test_an_old_python_is_explained(fresh):
    write_program(fresh.bin / "python", OLD_PYTHON)
    code, output = fresh.run("start")
    assert code == 1
    assert "no Python 3.11 or newer was found" in output
    assert "FOLIO_PYTHON" in output


def test_a_small_disk_is_noticed_before_the_installation(fresh):
    write_program(
        fresh.bin / "df", "#!/usr/bin/env bash\nprintf 'h\\n/dev/x 9 9 1000000 9%% /\\n'\n"
    )
    code, output = fresh.run("start")
    assert code == 1
    assert "only 1000 MB are free" in output
    assert fresh.num_installs == 0


def test_without_node_a_private_one_is_installed(project):
    write_program(project.bin / "node", "#!/usr/bin/env bash\nexit 1\n")
    (project.folder / "frontend" / "src" / "main.ts").write_text(str(time.time()))
    private = project.folder / ".node" / "bin"
    write_program(private / "npm", FAKE_NPM)
    write_program(private / "node", FAKE_NODE)
    (private / "marker").touch()
    try:
        code, output = project.run("start")
    finally:
        write_program(project.bin / "node", FAKE_NODE)
    assert code == 0, output
    assert project.npm_calls == [["run", "build"]]
    assert (private / "marker").exists()


def test_ctrl_c_during_the_set_up_stops_everything(project):
    project.need_an_installation()
    process = project.start_process("start", INSTALL_S=30)
    assert wait_for(lambda: project.num_installs)
    # A shell that is just starting its program can lose the signal: let the stand-in sleep first.
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "Starting Folio" not in output
    assert wait_for(lambda: not group_is_alive(process.pid))


def test_long_steps_say_that_they_are_alive(project):
    project.need_an_installation()
    _, output = project.run("start", INSTALL_S=3, FOLIO_HEARTBEAT_S=1)
    # On a busy machine the first second may already be over when it is counted.
    assert re.search(r"^    \.\.\. \d+ s  ", output, re.MULTILINE)


class Installer:
    """scripts/install-python with a Python that records its calls instead of installing."""

    def __init__(self, root, folder):
        self.script = root / "scripts" / "install-python"
        self.folder = folder
        self.log = folder / "calls.txt"
        write_program(
            folder / "python",
            f"""#!/usr/bin/env bash
case "$*" in
  -\\ *) exit 1 ;;  # is torch installed?
  -c*) exec {sys.executable} "$@" ;;
  *--dry-run*) cat {folder}/report.json; exit ;;
esac
echo "$*" >>{self.log}
case "$*" in *" uv pip "*) exit "${{UV_EXIT:-0}}" ;; esac
""",
        )

    def run(self, requires=(), gpu=False, **environment):
        report = {"install": [{"metadata": {"requires_dist": list(requires)}}]}
        (self.folder / "report.json").write_text(json.dumps(report))
        write_program(self.folder / "nvidia-smi", f"#!/bin/sh\nexit {0 if gpu else 1}\n")
        done = subprocess.run(
            [self.script, self.folder / "python", "wanted.txt"],
            capture_output=True,
            text=True,
            timeout=30,
            env={"PATH": f"{self.folder}:/usr/bin:/bin"} | environment,
        )
        assert done.returncode == 0, done.stderr
        return self.log.read_text().splitlines(), done.stdout


CPU = ["filelock", 'nvidia-cublas; platform_system == "Plan 9"']
CUDA = ["filelock", 'nvidia-cublas; platform_system == "' + os.uname().sysname + '"']


@pytest.fixture
def installer(root, tmp_path):
    return Installer(root, tmp_path)


def test_a_cpu_build_of_the_index_is_simply_installed(installer):
    calls, _ = installer.run(CPU)
    assert len(calls) == 1
    assert calls[0].endswith("-r wanted.txt")


def test_a_named_index_is_used_for_torch_alone(installer):
    calls, _ = installer.run(CUDA, FOLIO_TORCH_INDEX_URL="http://mirror/cpu")
    assert "--no-deps --index-url http://mirror/cpu torch==" in calls[0]
    assert "index-url" not in calls[1]
    assert len(calls) == 2


def test_without_a_gpu_the_cpu_build_replaces_a_cuda_one(installer):
    calls, _ = installer.run(CUDA)
    assert any("uv pip install" in call and "--torch-backend cpu torch==" in call for call in calls)
    assert calls[-1].endswith("-r wanted.txt")


def test_with_a_gpu_the_cuda_build_is_taken(installer):
    calls, output = installer.run(CUDA, gpu=True)
    assert len(calls) == 1
    assert "NVIDIA GPU" in output


def test_where_no_cpu_build_can_be_had_the_installation_goes_on(installer):
    calls, output = installer.run(CUDA, UV_EXIT="1")
    assert calls[-1].endswith("-r wanted.txt")
    assert "FOLIO_TORCH_INDEX_URL" in output
