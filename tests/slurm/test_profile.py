"""Cluster profiles: where they lie, what wins over what, and what is said of a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sailplan import files
from sailplan.errors import RunFileError
from sailplan.hardware.catalogue import find
from sailplan.run.config import Run
from sailplan.run.slurm_block import SlurmBlock
from sailplan.slurm.profile import profiles, read_profile, settings_of, template_of
from sailplan.slurm.script import render
from tests.slurm.asked import asked, parsed, shellcheck

SHIPPED = sorted((files.folder("slurm") / "profiles").glob("*.yaml"))

PROFILE = """\
partition: gpu
time: 08:00:00
gres: gpu:h100:8
cpus_per_gpu: 12
mem: 900G
environment:
  NCCL_SOCKET_IFNAME: ib0
  NCCL_DEBUG: INFO
directives: [--licenses=a:1]
merge:
  partition: cpu
  time: 1:00:00
"""


class Home:
    """A user's home with cluster profiles, and a working directory beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clusters = folder / ".config" / "sailplan" / "clusters"
        self.clusters.mkdir(parents=True)
        self.environment = {"HOME": str(folder)}

    def write(self, name: str, text: str) -> Path:
        path = self.clusters / f"{name}.yaml"
        path.write_text(text)
        return path

    def settings(
        self,
        flags: Sequence[str] = (),
        cluster: str | None = None,
        run: str = "",
        **environment: str,
    ) -> SlurmBlock:
        file = self.folder / "run.yaml"
        file.write_text(f"model_name_or_path: a/b\n{run}")
        found = Run.from_file(file, flags)
        return settings_of(found, cluster, environment={**self.environment, **environment})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path)


def said(settings: SlurmBlock) -> dict[str, Any]:
    """What is set."""
    return settings.model_dump(exclude_unset=True, exclude_none=True)


# Profiles that sailplan brings


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profile_makes_clean_scripts(path: Path, home: Home) -> None:
    settings = home.settings(cluster=path.stem, USER="ann")
    gpus = settings.gpus_per_node or 0

    for kind, nodes in (("train", 2), ("merge", 1), ("compare", 1)):
        request = asked(kind, nodes=nodes, gpus=gpus, settings=said(settings))  # type: ignore[arg-type]
        script = home.folder / f"{kind}.sbatch"
        script.write_text(render(request))
        assert parsed(script) == ""
        assert shellcheck(script) == ""
    if settings.gpu:
        assert find(settings.gpu).name == settings.gpu
    if settings.container:
        assert "Not run by sailplan's own tests" in path.read_text()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profile_is_right_in_what_it_leaves_out(path: Path, home: Home) -> None:
    """The lines that a user gets by taking away the mark of a comment."""
    lines = []
    for line in path.read_text().splitlines():
        bare = line.removeprefix("# ")
        key = bare.partition(":")[0]
        lines.append(bare if line.startswith("# ") and key in SlurmBlock.model_fields else line)
    own = home.write("own", "\n".join(lines))

    read_profile(own, {**home.environment, "USER": "ann"})


def test_shipped_profiles_ask_for_gpus_in_three_styles(home: Home) -> None:
    found = {read_profile(path).gpu_request for path in SHIPPED}
    assert found == {"gres", "gpus_per_node", "gpus_per_task"}


# Where a profile is


def test_profile_of_the_user_comes_before_one_that_sailplan_brings(home: Home) -> None:
    home.write("cpu", "mem: 1G\n")
    assert said(home.settings(cluster="cpu")) == {"cluster": "cpu", "mem": "1G"}
    assert home.settings(cluster="8xh100-gres").gpu_type == "h100"


def test_profile_is_found_by_its_file(home: Home) -> None:
    (home.folder / "ours.yaml").write_text("mem: 2G\n")
    assert home.settings(cluster="ours.yaml").cluster == "ours"
    assert home.settings(run="slurm: {cluster: ./ours.yaml}").mem == "2G"


def test_profiles_lie_in_the_configuration_folder(home: Home) -> None:
    elsewhere = home.folder / "elsewhere"
    (elsewhere / "sailplan" / "clusters").mkdir(parents=True)
    (elsewhere / "sailplan" / "clusters" / "mine.yaml").write_text("mem: 3G\n")

    assert home.settings(cluster="mine", XDG_CONFIG_HOME=str(elsewhere)).mem == "3G"
    assert "mine" in profiles({"XDG_CONFIG_HOME": str(elsewhere)})
    assert profiles(home.environment) == [path.stem for path in SHIPPED]


def test_default_profile_holds_where_none_is_named(home: Home) -> None:
    assert said(home.settings(run="slurm: {mem: 1G}")) == {"mem": "1G"}
    home.write("default", "partition: here\n")
    home.write("other", "partition: there\n")
    assert said(home.settings()) == {"cluster": "default", "partition": "here"}
    assert home.settings(run="slurm: {cluster: other}").partition == "there"
    assert home.settings(run="slurm: {cluster: other}", cluster="default").partition == "here"


def test_profile_that_is_not_there_lists_what_there_is(home: Home) -> None:
    home.write("mine", "mem: 1G\n")
    names = ", ".join(profiles(home.environment))
    with pytest.raises(RunFileError) as caught:
        home.settings(cluster="mien")
    assert str(caught.value) == (
        f"--cluster: no cluster profile 'mien'; allowed: {names}; did you mean mine?"
    )
    with pytest.raises(RunFileError, match=r"^slurm.cluster: no .*; write it as .*/xy.yaml$"):
        home.settings(run="slurm: {cluster: xy}")
    with pytest.raises(RunFileError, match=r"no cluster profile a/b\.yaml; check"):
        home.settings(cluster="a/b.yaml")


# What wins


def test_what_the_run_says_wins_over_the_profile(home: Home) -> None:
    home.write("mine", PROFILE)
    run = "slurm:\n  cluster: mine\n  partition: other\n  merge: {mem: 5G}\n"

    settings = home.settings(["--slurm.merge.time", "2:00:00", "--slurm.exclusive"], run=run)

    assert settings.partition == "other"
    assert settings.time == "08:00:00"
    assert settings.exclusive
    assert said(settings)["merge"] == {"partition": "cpu", "time": "2:00:00", "mem": "5G"}


def test_variables_of_the_run_stand_beside_those_of_the_profile(home: Home) -> None:
    home.write("mine", PROFILE)
    flags = ["--slurm.environment.NCCL_DEBUG", "TRACE", "--slurm.environment.A=b c"]
    assert home.settings(flags, "mine").environment == {
        "NCCL_SOCKET_IFNAME": "ib0",
        "NCCL_DEBUG": "TRACE",
        "A": "b c",
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--slurm.mem_per_gpu", "9G"], {"mem": None, "mem_per_gpu": "9G", "cpus_per_gpu": 12}),
        (["--slurm.cpus_per_task", "9"], {"cpus_per_gpu": None, "cpus_per_task": 9, "mem": "900G"}),
        (["--slurm.gpu_request", "gpus_per_node"], {"gres": None, "mem": "900G"}),
        (["--slurm.gres", "gpu:2", "--slurm.gpu_type", "x"], {"gres": "gpu:2", "gpu_type": "x"}),
    ],
)
def test_what_the_run_says_is_not_hidden_by_the_same_in_other_words(
    home: Home, flags: list[str], expected: Mapping[str, Any]
) -> None:
    home.write("mine", PROFILE)
    settings = home.settings(flags, "mine")
    assert {name: getattr(settings, name) for name in expected} == expected


def test_list_may_be_one_word_or_several(home: Home) -> None:
    assert home.settings(["--slurm.directives=--x=a:1"]).directives == ("--x=a:1",)
    assert home.settings(["--slurm.modules", "a", "b/1"]).modules == ("a", "b/1")
    assert home.settings(run="slurm: {modules: cuda}").modules == ("cuda",)


def test_block_with_nothing_below_it_says_nothing(home: Home) -> None:
    home.write("mine", PROFILE)
    settings = home.settings(cluster="mine", run="slurm:\n  merge:\n  environment:\n")
    assert said(settings)["merge"] == {"partition": "cpu", "time": "1:00:00"}
    assert settings.environment["NCCL_DEBUG"] == "INFO"


def test_run_that_is_written_down_can_be_read_again(home: Home) -> None:
    run = "slurm:\n  merge: {time: 1:00:00, gpus: 1}\n  environment: {A: 'b: c'}\n  modules: [x]\n"
    (home.folder / "run.yaml").write_text(f"model_name_or_path: a/b\n{run}")
    first = Run.from_file("run.yaml")
    (home.folder / "again.yaml").write_text(first.run_yaml())
    assert Run.from_file("again.yaml").slurm == first.slurm


# Folders


def test_folders_are_whole_paths_with_their_variables_filled_in(home: Home) -> None:
    home.write("mine", "venv: ~/venv\nshared_cache: $DISK/${USER}/hf\ntemplate: own.j2\n")
    settings = home.settings(cluster="mine", DISK="/disk", USER="ann")
    assert settings.venv == f"{home.folder}/venv"
    assert settings.shared_cache == "/disk/ann/hf"
    assert settings.template == f"{home.clusters}/own.j2"
    assert home.settings(run="slurm: {template: own.j2}").template == f"{home.folder}/own.j2"


def test_local_cache_keeps_its_variables_for_the_node(home: Home) -> None:
    assert home.settings(run="slurm: {local_cache: $TMPDIR/x}").local_cache == "$TMPDIR/x"


def test_folder_with_a_variable_that_there_is_not_is_refused(home: Home) -> None:
    path = home.write("mine", "shared_cache: $NO_DISK/x\n")
    with pytest.raises(RunFileError) as caught:
        home.settings(cluster="mine")
    assert str(caught.value) == (
        f"{path}: shared_cache is '$NO_DISK/x', and there is no $NO_DISK in the environment"
    )


def test_template_is_read_or_refused(home: Home) -> None:
    (home.folder / "own.j2").write_text("# ☃\n")
    assert template_of(SlurmBlock()) is None
    assert template_of(home.settings(run="slurm: {template: own.j2}")) == "# ☃\n"
    with pytest.raises(RunFileError, match=r"template .*/none.j2: No such file"):
        template_of(home.settings(run="slurm: {template: none.j2}"))
    (home.folder / "own.j2").write_bytes(b"\xff")
    with pytest.raises(RunFileError, match="is not UTF-8 text"):
        template_of(home.settings(run="slurm: {template: own.j2}"))


# Mistakes

SECRET = (
    "may hold a secret, and it would stand in job scripts; "
    "set it in the environment of `sailplan submit` instead"
)

MISTAKES = {
    "partiton: a\n": ":1: unknown key partiton; did you mean partition?",
    "mem: 1G\nmerge:\n  tiem: 1\n": ":3: unknown key merge.tiem; did you mean time?",
    "merge: {cpus_per_task: x}\n": ":1: merge.cpus_per_task is 'x'; allowed: a whole number",
    "mem:\n  a: 1\n": ':1: mem is {"a": 1}; allowed: a text',
    "mem.a: 1\n": ":1: unknown key mem.a",
    "container:\n  image: a\n": ":2: container.runtime is missing",
    "container: {image: a, runtime: docker}\n": (
        ":1: container.runtime is 'docker'; allowed: 'pyxis' or 'apptainer'"
    ),
    "container: a\n": ":1: container is 'a'; allowed: a mapping",
    "directives: [a, [b]]\n": ':1: directives is ["a", ["b"]]; allowed: a text',
    'mem: "a\\n#SBATCH -w x"\n': ":1: mem is 'a #SBATCH -w x'; allowed: one line of text",
    "environment: {A B: 1}\n": (
        ":1: environment.A B is not named as a variable is; allowed: letters, digits and _"
    ),
    "environment: [A]\n": ':1: environment is ["A"]; allowed: a mapping',
    "environment:\n  HF_TOKEN: abc\n": f":2: environment.HF_TOKEN {SECRET}",
    "environment:\n  MY_KEY: abc\n": f":2: environment.MY_KEY {SECRET}",
    "environment: {A: 'https://ann:pass@example.org'}\n": f":1: environment.A {SECRET}",
    "directives: ['--export=A,WANDB_API_KEY=abc']\n": f":1: directives {SECRET}",
    "cluster: other\n": (
        ":1: a profile is a cluster, and names none; "
        "drop the line; the file's name is the cluster's"
    ),
    "- a\n": " holds a list, not settings; allowed: `name: value` lines",
    "a: b: c\n": ":1: not YAML, mapping values are not allowed in this context",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_in_a_profile_is_told_by_file_and_line(text: str, home: Home) -> None:
    path = home.write("mine", text)
    with pytest.raises(RunFileError) as caught:
        home.settings(cluster="mine")
    assert str(caught.value) == f"{path}{MISTAKES[text]}"


def test_mistake_in_a_run_is_told_by_its_place(home: Home) -> None:
    with pytest.raises(RunFileError, match=r"run.yaml:4: unknown key slurm.merge.tiem; did you"):
        home.settings(run="slurm:\n  merge:\n    tiem: 1\n")
    with pytest.raises(RunFileError, match=r"^--slurm.merge.tiem: unknown key slurm.merge.tiem"):
        home.settings(["--slurm.merge.tiem", "1"])
    with pytest.raises(RunFileError, match=r"^--slurm.environment.HF_TOKEN: .* secret") as told:
        home.settings(["--slurm.environment.HF_TOKEN", "abcdef"])
    assert "abcdef" not in str(told.value)
