"""Job scripts: whole texts, what shells make of them, and values that want to be commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sailplan.errors import RunFileError
from sailplan.run.paths import RunPaths
from sailplan.slurm.jobs import Kind
from sailplan.slurm.script import JobRequest, render
from tests.slurm.asked import JOBS, asked, golden, parsed, shellcheck

# Whole texts


@pytest.mark.parametrize("name", JOBS)
def test_script_is_the_golden_text(name: str) -> None:
    assert render(JOBS[name]) == golden(name).read_text()


@pytest.mark.parametrize("name", JOBS)
def test_script_is_clean(name: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(render(JOBS[name]))

    assert parsed(script) == ""
    assert shellcheck(script) == ""


@pytest.mark.parametrize("name", [name for name in JOBS if name.startswith("train")])
def test_what_each_node_does_is_clean(name: str, tmp_path: Path) -> None:
    """It stands in single quotes, where shellcheck does not look."""
    text = render(JOBS[name])
    quoted = "'" + text.partition("bash -c '")[2].partition("' on_node")[0] + "'"
    words = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True
    )
    script = tmp_path / "node.sh"
    script.write_text(f"#!/bin/bash\n{words.stdout}")

    assert parsed(script) == ""
    assert shellcheck(script) == ""


def test_golden_texts_are_all_used() -> None:
    assert sorted(path.stem for path in golden("").parent.iterdir()) == sorted(JOBS)


# Values that want to be commands

HOSTILE = [
    *("a b", "it's", 'a"b', "$(touch PWNED)", "`touch PWNED`", "; touch PWNED", "a\nb\n\n\nc"),
    *("\ntouch PWNED\n", "'; touch PWNED; '", '"; touch PWNED; "', "# a", "100% %j %%", "-rf"),
    *("ünïcode ☃", "back\\slash", "\\", "$HOME ${HOME}", "&& touch PWNED", "*", "~", "!x", "a\tb"),
    *("| touch PWNED", "> PWNED", "\\\ntouch PWNED", "{{ x }}", "{% x %}", "{# x #}", "' 'x"),
]
ONE_LINE = [value for value in HOSTILE if value.isprintable()]
MODULES = [value for value in ONE_LINE if "PWNED" in value]
FOLDERS = [value.replace("/", "_") for value in HOSTILE]

FAKE = """\
import json, os, sys
words = sys.argv[1:]
name = os.path.basename(sys.argv[0])
seen = {"name": name, "words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(seen) + "\\n")
if name == "apptainer":
    rest = words[words.index(os.environ["IMAGE"]) + 1 :]
    os.execvp(rest[0], rest)
if name == "srun":
    command = list(words)
    while command[0].startswith("--"):
        del command[0]
    for node in range(1 if "--nodes=1" in words else int(os.environ["NODES"])):
        process = os.fork()
        if not process:
            os.environ["SLURM_NODEID"] = str(node)
            os.execvp(command[0], command)
        os.waitpid(process, 0)
elif name == "scontrol":
    print("node1\\nnode2")
elif words[:5] == ["-m", "sailplan", "job", "begin", "train"]:
    print("1")
elif words[:5] == ["-m", "sailplan", "job", "end", "train"]:
    print("finished")
"""


class Shell:
    """A folder with programs that note how they are called, and a real bash among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "it's $(touch PWNED)\n" / "bin"
        self.bin.mkdir(parents=True)
        self.record = folder / "record.jsonl"
        (folder / "fake.py").write_text(FAKE)
        for name in ("srun", "scontrol", "module", "python", "apptainer"):
            fake = self.bin / name
            fake.write_text(f"#!{sys.executable} -IS\n{FAKE}")
            fake.chmod(0o755)
        self.here = folder / "here"
        self.here.mkdir()

    def run(self, request: JobRequest, **environment: str) -> list[dict[str, Any]]:
        """Runs a job's script and returns how each program was called."""
        request.paths.slurm.mkdir(parents=True)
        request.working_directory.mkdir(parents=True, exist_ok=True)
        script = self.folder / "job.sbatch"
        script.write_text(render(request))
        assert parsed(script) == ""
        done = subprocess.run(
            ["bash", script],
            cwd=self.here,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "HOME": "/home/ann",
                "USER": "ann",
                "RECORD": str(self.record),
                "NODES": str(request.nodes),
                "SLURM_JOB_ID": "20041",
                "SLURM_JOB_NODELIST": "node[1-2]",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        log = request.paths.job_log(request.kind, 20041)
        said = done.stdout + done.stderr + (log.read_text() if log.exists() else "")
        assert (done.returncode, said) == (0, ""), said
        assert not list(self.folder.rglob("PWNED"))
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def hostile(shell: Shell, kind: Kind, *, settings: dict[str, Any], **values: Any) -> JobRequest:
    """A job in which every value wants to be a command."""
    run = shell.folder.joinpath("runs", *FOLDERS[:12])
    return asked(
        kind,
        run=run,
        working_directory=shell.folder.joinpath("work", *FOLDERS[12:]),
        python=shell.bin / "python",
        about="\n".join(HOSTILE),
        name="".join(HOSTILE),
        variables={f"OURS_{number}": value for number, value in enumerate(HOSTILE)},
        settings={
            "partition": "; touch PWNED",
            "modules": MODULES,
            "environment": {f"THEIRS_{number}": value for number, value in enumerate(ONE_LINE)},
            "directives": [f"--comment={value}" for value in ONE_LINE],
            **settings,
        },
        **values,
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_train_script_gives_hostile_values_unharmed(shell: Shell, nodes: int) -> None:
    rest = ("--config_file", *HOSTILE, "-m", "sailplan.train.sft_vlm", "--config", *HOSTILE)
    cache = '/local/$USER/$(touch PWNED)/`touch PWNED`/it\'s "a" \\ ${SLURM_NODEID}'
    settings = {"local_cache": cache, "shared_cache": "$(touch PWNED) '"}
    request = hostile(shell, "train", settings=settings, nodes=nodes, command=("launch", *rest))

    seen = shell.run(request)

    assert [call["words"] for call in seen if call["name"] == "module"] == [
        ["load", value] for value in MODULES
    ]
    begin, *launches, end = [call for call in seen if call["name"] == "python"]
    run = str(request.paths.path)
    cap = ["--max-restarts", "3"]
    assert begin["words"] == ["-m", "sailplan", "job", "begin", "train", run, *cap]
    assert end["words"] == ["-m", "sailplan", "job", "end", "train", run, *cap, "0", ""]
    assert len(launches) == nodes
    for node, call in enumerate(launches):
        where = ["--main_process_port", "20041"]
        if nodes > 1:
            where += ["--main_process_ip", "node1", "--machine_rank", str(node)]
        launcher = ["-m", "sailplan.launcher.accelerate", "launch"]
        assert call["words"] == [*launcher, *where, *rest]
        assert call["cwd"] == str(request.working_directory)
        environment = call["environment"]
        for name, value in {**request.variables, **request.settings.environment}.items():
            assert environment[name] == value
        assert environment["HF_HOME"] == "$(touch PWNED) '"
        local = f'/local/ann/$(touch PWNED)/`touch PWNED`/it\'s "a" \\ {node}'
        assert environment["TRITON_CACHE_DIR"] == f"{local}/triton"
        assert environment["SAILPLAN_ATTEMPT"] == "1"
        assert environment["SAILPLAN_FAILURES"] == str(request.paths.failures)


@pytest.mark.parametrize("kind", ["merge", "compare"])
def test_stage_script_gives_hostile_values_unharmed(shell: Shell, kind: Kind) -> None:
    command = ("python", "-m", "sailplan", kind, *HOSTILE)
    request = hostile(shell, kind, settings={"local_cache": "~/$(id)"}, command=command)

    begin, work, end = [call for call in shell.run(request) if call["name"] == "python"]

    run = str(request.paths.path)
    assert begin["words"] == ["-m", "sailplan", "job", "begin", kind, run]
    assert work["words"] == list(command[1:])
    assert work["cwd"] == str(request.working_directory)
    assert work["environment"]["TORCH_EXTENSIONS_DIR"] == "/home/ann/$(id)/torch_extensions"
    assert end["words"] == ["-m", "sailplan", "job", "end", kind, run, "0"]


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_container_script_gives_hostile_values_unharmed(shell: Shell, runtime: str) -> None:
    image = "a b'$(touch PWNED)"
    settings = {"container": {"runtime": runtime, "image": image, "mounts": ["/d"]}}
    request = hostile(shell, "train", settings=settings, nodes=2, command=("launch", *HOSTILE))
    folders = (request.paths.path, request.working_directory, "/d")

    seen = shell.run(request, IMAGE=image)

    program = "srun" if runtime == "pyxis" else "apptainer"
    begin, *steps, end = [call["words"] for call in seen if call["name"] == program]
    if runtime == "pyxis":
        mounts = ",".join(f"{folder}:{folder}" for folder in folders)
        inside = {f"--container-image={image}", f"--container-mounts={mounts}"}
        beside = {"--overlap", "--mem=0", "--nodes=1", "--ntasks=1"}
        assert inside | beside <= {*begin} & {*end}
        assert [inside <= {*step} and not beside & {*step} for step in steps] == [True]
    else:
        binds = [word for folder in folders for word in ("--bind", f"{folder}:{folder}")]
        head = ["exec", "--nv", *binds, image]
        assert [words[: len(head)] for words in (begin, *steps, end)] == [head] * 4
    launches = [call["words"] for call in seen if call["name"] == "python"][1:-1]
    assert [words[-len(HOSTILE) :] for words in launches] == [HOSTILE] * 2


def test_log_that_no_directive_can_name_is_written_by_the_script(shell: Shell) -> None:
    request = asked(run=shell.folder / "a\nb\\c", python=shell.bin / "python")
    request = asked(run=request.paths.path, python=request.python, working_directory=shell.here)
    assert "#SBATCH --output=/dev/null\n" in render(request)

    shell.run(request)

    assert request.paths.job_log("train", 20041).is_file()


def test_line_for_the_reader_cannot_leave_its_comment() -> None:
    text = render(asked(about="trains\n#SBATCH --nodes=100\r\ntouch PWNED \x1b[31m"))
    assert text.splitlines()[1] == "# trains #SBATCH --nodes=100 touch PWNED \ufffd[31m"


def test_script_without_a_wanted_variable_stops_and_names_it(shell: Shell) -> None:
    request = asked(
        run=shell.folder / "run",
        wanted=("HF_TOKEN",),
        working_directory=shell.here,
        python=shell.bin / "python",
    )
    with pytest.raises(AssertionError, match="HF_TOKEN: must be in the environment of sbatch"):
        shell.run(request)


def test_variable_whose_name_is_a_command_is_refused() -> None:
    with pytest.raises(RunFileError, match="cannot be a variable's name"):
        render(asked(wanted=("A$(touch PWNED)",)))


@pytest.mark.parametrize("folder", ["/a,b", "/a:b"])
def test_folder_that_no_container_can_mount_is_refused(folder: str) -> None:
    settings = {"container": {"runtime": "pyxis", "image": "a"}}
    with pytest.raises(RunFileError, match="a container cannot mount"):
        render(asked(run=Path(folder), settings=settings))


# Templates of one's own


def test_own_template_has_the_same_variables_and_parts(tmp_path: Path) -> None:
    template = (
        '{% include "_head.sbatch.j2" %}\n'
        "{% for directive in directives %}echo {{ directive }}\n{% endfor %}"
        "{{ command | lines }} {{ nodes }} {{ gpus_per_node }} {{ settings.partition }}\n"
    )
    request = asked(nodes=2, settings={"partition": "it's"})

    text = render(request, template=template)

    assert text.startswith(render(request).partition("\n# What tells")[0])
    assert text.endswith("""/train.yaml 2 8 'it'"'"'s'\n""")


def test_own_template_that_quotes_nothing_is_safe() -> None:
    request = asked(run=Path("/a; touch PWNED"))
    assert render(request, template="cd {{ paths.path }}\n") == "cd '/a; touch PWNED'\n"
    assert render(request, template="cd {{ paths.path | sh }}\n") == "cd '/a; touch PWNED'\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{{ partition }}\n", "my.j2:2: 'partition' is undefined"),
        ("a\nb\n{% if %}\n", "my.j2:3: Expected an expression"),
        ("{{ nodes | shell }}", "my.j2:1: No filter named 'shell'"),
        ("a\n{{ settings.partiton }}", "my.j2:2: .*no attribute 'partiton'"),
        ("a\n{{ settings.partition }}", "my.j2:2: None is no text"),
        ("a\n{{ nodes / 0 }}", "my.j2:2: division by zero"),
        ('{% include "other.j2" %}', "my.j2:1: 'other.j2' not found"),
        ("a\n{{ nodes.x() }}", "my.j2:2: "),
    ],
)
def test_wrong_template_is_told_by_file_and_line(template: str, message: str) -> None:
    request = asked(settings={"template": "my.j2"})
    with pytest.raises(RunFileError, match=f"^{message}") as caught:
        render(request, template=template)
    assert "\n" not in str(caught.value)


def test_log_is_where_the_run_says(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "100%")
    assert f"--output={tmp_path}/100%%/slurm/train-%j.log\n" in render(asked(run=paths.path))
    assert paths.job_log("train", 7) == tmp_path / "100%" / "slurm" / "train-7.log"
