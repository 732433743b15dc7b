"""What the documentation shows is so: commands, run files, rows, tables and printed lines."""

from __future__ import annotations

import errno
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from sailplan.cli.main import VERBS, app
from sailplan.data.archives import SUFFIXES
from sailplan.data.images import FORMATS, PIXEL_LIMIT
from sailplan.data.local import BUILDERS
from sailplan.data.remote import SIZE_LIMIT_BYTES, TIMEOUT_S
from sailplan.errors import SailplanError
from sailplan.evaluate.scores.summary import TITLES
from sailplan.hub import errors as hub_errors
from sailplan.hub.access import check_push
from sailplan.hub.repository import Repository
from sailplan.launcher.command import ENTRY_MODULE
from sailplan.launcher.preset import PRESETS
from sailplan.run.accelerate_flags import accelerate_flags
from sailplan.run.blocks import GenerationBlock, LaunchBlock
from sailplan.run.config import DIFFERENT_DEFAULTS, Run
from sailplan.run.fields import dataset_table, field_table
from sailplan.run.legacy import legacy_names, translate
from sailplan.run.legacy_names import GONE, RENAMED
from sailplan.run.metrics import read_metrics
from sailplan.run.repositories import REVISIONS
from sailplan.run.saved import _HARMLESS_VARIABLES
from sailplan.run.slurm_block import ContainerBlock, GpuRequest, SlurmBlock, StageBlock
from sailplan.run.values import Entry, scalar
from sailplan.slurm.profile import read_profile
from sailplan.slurm.script import JobRequest
from sailplan.train.evaluation import METRICS
from sailplan.train.optimizer_check import OPTIM_ARGS
from sailplan.train.throughput import RATES
from sailplan.train.watched import NAME as ANSWERS
from tests.cli.test_main import sailplan
from tests.data.reading import pieces, turn
from tests.data.test_images import png_header
from tests.support.markdown import Block, anchors, blocks, links, prose, spans, tables

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))) if page.is_file()]
RUN_FILE, DATA, LABELS = (DOCS / f"{name}.md" for name in ("run-file", "data", "labels"))
PROFILES = DOCS / "slurm-profiles.md"
BLOCKS = [block for page in PAGES for block in blocks(page)]


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.kind == kind]


def commands() -> list[tuple[Block, list[str]]]:
    """The commands of all pages; a block whose first word is none is a diagram."""
    found = []
    for block in of_kind(""):
        lines = block.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", line), comments=True) for line in lines]
        if " -> " not in block.text:
            found += [(block, command) for command in words if command]
    return found


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what `datasets` caches out of the user's folder."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets_cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Every page


def test_blocks_are_of_kinds_that_are_checked() -> None:
    assert {block.kind for block in BLOCKS} <= {"", "yaml", "json", "text", "python"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_are_there(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def is_profile(block: Block) -> bool:
    """Whether a block is of a cluster and not of a run: they have no key in common."""
    return set(yaml.safe_load(block.text)) <= set(SlurmBlock.model_fields)


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_yaml_is_a_run_file_or_a_cluster_profile_in_todays_names(here: Path, block: Block) -> None:
    path = here / "run.yaml"
    path.write_text(block.text)

    if is_profile(block):
        read_profile(path)
    else:
        assert Run.from_file(path).notes == ()

    head, _, rest = block.text.partition("\n")
    shipped = re.fullmatch(r"# ((launch|slurm/profiles)/\S+\.yaml)", head)
    assert not shipped or rest == (ROOT / shipped[1]).read_text()


@pytest.mark.parametrize("block", of_kind("python"), ids=str)
def test_python_runs(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.parametrize(
    ("block", "command"),
    commands(),
    ids=lambda part: str(part) if isinstance(part, Block) else part[0],
)
def test_command_is_understood(here: Path, block: Block, command: list[str]) -> None:
    program, *arguments = command
    for word in arguments:  # a run file that the reader has written
        if word.endswith(".yaml") and not (ROOT / word).is_file():
            written = [other.text for other in blocks(block.page) if other.kind == "yaml"]
            text = written[0] if written else "model_name_or_path: a/b\n"
            (here / word).parent.mkdir(parents=True, exist_ok=True)
            (here / word).write_text(text)
            for data in re.findall(r"^dataset_name: (\S+\.jsonl)$", text, re.MULTILINE):
                (here / data).write_text('{"text": "one row"}\n')
    CHECKS[program](arguments)


def _sailplan(arguments: list[str]) -> None:
    verb, *rest = arguments
    if verb == "train":
        code, _, err = sailplan("train", *rest, "--launch.cpu", "true", "--dry-run")
        assert code == 0, err
    else:
        group: Any = typer.main.get_command(app)
        group.get_command(None, verb).make_context(verb, rest)


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(arguments) <= set(targets)


def _accelerate(arguments: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    parsed = launch_command_parser().parse_args(arguments[1:])
    assert (ROOT / parsed.config_file).is_file()
    _script(parsed)


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    _script(get_args_parser().parse_args(arguments))


def _script(parsed: Any) -> None:
    assert (parsed.module, parsed.training_script) == (True, ENTRY_MODULE)
    Run.from_flags(parsed.training_script_args)


CHECKS: Mapping[str, Callable[[list[str]], None]] = {
    "sailplan": _sailplan,
    "make": _make,
    "accelerate": _accelerate,
    "torchrun": _torchrun,
}


# Names in the prose

SETTINGS = {"launch": LaunchBlock, "slurm": SlurmBlock, "generation": GenerationBlock}

OTHER_NAMES = {
    *(*SETTINGS, "env", "accelerate_config", "config"),
    *PRESETS,
    *PRESETS.values(),
    *dataset_table(),
    *SlurmBlock.model_fields,
    *get_args(GpuRequest),
    *(field.name for field in fields(JobRequest)),
    *(choice for field in field_table().values() for choice in field.choices or ()),
    *("alpaca_short", "prompt_input", "prompt_no_input", "q_proj", "v_proj", "embed_tokens"),
    *chain(*OPTIM_ARGS.values()),
    *("image_url", "input_text", "input_image", "tool_calls", "function_call", "reasoning_content"),
    *("save_to_disk", "configs", "from_pretrained"),  # of datasets and transformers
    *(
        "pytorch_model_fsdp_0",
        "zero_to_fp32",
        "merge_and_unload",
        "fan_in_fan_out",
        "lora_bias",
        "target_parameters",
    ),
    *(
        "modules_to_save",
        "trainable_token_indices",
        "multiple_of",
        "ffn_dim_multiplier",
        "n_kv_heads",
        "rope_theta",
    ),
    *(f"eval_{metric}" for metric in METRICS),
    *RATES,
    *TITLES,
    "num_images",  # of a row, for a score of the user's own
    "generation_config",  # a model's own
    ANSWERS,
}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name != "decisions"],  # those speak of code
    ids=lambda page: page.name,
)
def test_options_in_the_prose_are_options_of_today(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    verbs = {option.name for verb in VERBS for option in group.get_command(None, verb).params}
    today = {*field_table(), *accelerate_flags(), *OTHER_NAMES, *verbs}
    for paragraph in prose(page).split("\n\n"):
        known = today | (legacy_names() if "lder name" in paragraph else set())
        for span in re.findall(r"`([^`]+)`", paragraph):
            span = " ".join(span.split())
            option = re.fullmatch(r"--(\w+)( .*)?|([a-z_.]+):( .*)?|([a-z\d]+(?:_[a-z\d]+)+)", span)
            block, _, key = span.partition(".")
            if "." in span and block in SETTINGS:
                assert key.split(":")[0] in SETTINGS[block].model_fields, span
            elif option:
                name = option[1] or option[3] or option[5]
                assert {name, name.removeprefix("no_")} & known, span
            elif re.fullmatch(r"[\w/]+\.(py|md|yaml)", span) and "/" in span:
                assert (ROOT / span).is_file() or (ROOT / "src/sailplan" / span).is_file(), span


# The run file's page


def own_fields() -> list[list[str]]:
    rows = []
    for field in field_table().values():
        if field.owner == "SailplanArguments":
            choices = "".join(f" One of {', '.join(field.choices)}." if field.choices else "")
            rows.append([f"`{field.name}`", shown(field.default), field.help + choices])
    return rows


def shown(default: Any) -> str:
    return str(default) if isinstance(default, str) else json.dumps(default)


def renamed() -> list[list[str]]:
    new = dict.fromkeys(RENAMED.values())
    olds = {name: [old for old, today in RENAMED.items() if today == name] for name in new}
    return [[f"`{name}`", ", ".join(f"`{old}`" for old in olds[name])] for name in new]


def rewritten() -> list[list[str]]:
    values = {"warmup_ratio": "0.03", "use_auth_token": "abc"}
    rows = []
    for old in sorted(legacy_names() - set(RENAMED) - set(GONE)):
        entry = Entry(name=old, raw=scalar(values.get(old, "true")), where="x")
        (note,) = translate([entry], field_table()).notes
        rows.append([f"`{old}`", note.removeprefix(f"x: {old} ")])
    return rows


def gone() -> list[list[str]]:
    return [[f"`{old}`", why] for old, why in GONE.items()]


@pytest.mark.parametrize("rows", [own_fields, renamed, rewritten, gone])
def test_table_of_the_run_file_page_equals_the_code(rows: Callable[[], list[list[str]]]) -> None:
    expected = rows()
    assert [table for table in tables(RUN_FILE) if table[0][0] == expected[0][0]] == [expected]


def test_blocks_of_the_launcher_are_all_there_with_their_defaults() -> None:
    table = next(table for table in tables(RUN_FILE) if table[0][0].startswith("`launch."))
    assert [row[:2] for row in table] == [
        [f"`launch.{name}`", shown(field.default)]
        for name, field in LaunchBlock.model_fields.items()
    ]


def defaults(block: type[BaseModel]) -> list[list[str]]:
    """The first cells of a table of a block's keys."""
    rows = []
    for name, field in block.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        text = "see below" if isinstance(default, BaseModel) else shown(default)
        rows.append([f"`{name}`", "required" if field.is_required() else text])
    return rows


@pytest.mark.parametrize("block", [SlurmBlock, StageBlock, ContainerBlock])
def test_keys_of_cluster_profiles_are_all_there_with_their_defaults(block: type[BaseModel]) -> None:
    found = [[row[:2] for row in table] for table in tables(PROFILES)]
    assert defaults(block) in found


def test_variables_of_job_templates_are_all_there() -> None:
    table = next(table for table in tables(PROFILES) if table[0][0] == "`kind`")
    names = {field.name for field in fields(JobRequest)} | {"directives"}
    assert {row[0].strip("`") for row in table} == names


def test_defaults_that_differ_are_all_there(here: Path) -> None:
    from sailplan.train.arguments import training_arguments

    arguments, _ = training_arguments(Run.from_flags(["--use_cpu"]))
    logged = {"report_to": arguments.report_to[0]}
    table = next(table for table in tables(RUN_FILE) if table[0][0] == "`assistant_only_loss`")
    assert [[row[0], row[1], row[2].split(":")[0]] for row in table] == [
        [f"`{name}`", shown(field_table()[name].default), shown(ours)]
        for name, ours in {**DIFFERENT_DEFAULTS, **logged}.items()
    ]


def test_files_of_a_run_directory_are_in_its_table(here: Path) -> None:
    from sailplan.hardware.detect import detect
    from sailplan.launcher import local
    from sailplan.launcher.command import command

    (here / "run.yaml").write_text("model_name_or_path: a/b\nlaunch: {cpu: true}\n")
    run, machine = Run.from_file("run.yaml", ["--output_dir", "out"]), detect({})
    local.write_files(run, command(run, machine, port=1, environment={}), machine)

    table = next(table for table in tables(RUN_FILE) if table[0][0] == "`run.yaml`")
    launched = {row[0].strip("`") for row in table if row[2] in ("both", "`sailplan train`")}
    assert {path.name for path in (here / "out").iterdir()} == launched


def test_variables_that_are_written_are_named() -> None:
    assert {
        span for span in spans(RUN_FILE) if span.isupper() and span not in ("HF_TOKEN", "STOP")
    } == _HARMLESS_VARIABLES


MODEL = "model_name_or_path: a/b\n"
RUN_FILE_MISTAKES = [
    (MODEL + "learning_rat: 1e-4\n", 1),
    (MODEL + "learning_rate: fast\n", 1),
    (MODEL + "learning_rate: -1\n", 1),
    (MODEL + "over_length: cut\n", 1),
    (MODEL + "learning_rate: 1e-4\nlearning_rate: 1e-5\n", 1),
    (MODEL + "load_in_4bit: true\n", 1),
    ("global_batch_size: 128\nper_device_train_batch_size: 4\n", 3),
    (
        "global_batch_size: 128\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 4\n",
        4,
    ),
]


def test_metrics_of_an_evaluation_are_in_its_table() -> None:
    assert [row[0] for row in tables(DOCS / "evaluation.md")[0]] == [
        f"`eval_{metric}`" for metric in METRICS
    ]


def test_metrics_of_throughput_are_in_its_table() -> None:
    table = next(table for table in tables(DOCS / "throughput.md") if "_per_s" in table[0][0])
    assert [row[0] for row in table] == [f"`{name}`" for name in RATES]


def test_errors_of_the_run_file_page_are_printed_so(here: Path) -> None:
    printed = []
    for text, world_size in RUN_FILE_MISTAKES:
        (here / "my-run.yaml").write_text(text)
        with pytest.raises(SailplanError) as caught:
            Run.from_file("my-run.yaml").for_world_size(world_size)
        printed.append(f"error: {caught.value}\n")

    assert printed_on(RUN_FILE) == "".join(printed)


def printed_on(page: Path, heading: str | None = None) -> str:
    """The printed lines that a page shows, below one heading or all of them."""
    return "".join(
        block.text
        for block in blocks(page)
        if block.kind == "text" and heading in (None, block.heading)
    )


# The page about machines without a network


def test_errors_of_the_offline_page_are_printed_so() -> None:
    from httpx2 import Request, Response
    from huggingface_hub import errors

    model = Repository(kind="model", name="owner/model")
    answer = Response(401, request=Request("GET", "https://huggingface.co"))
    printed = [
        hub_errors.missing(model, run_file="my-run.yaml"),
        hub_errors.explain(errors.GatedRepoError("", response=answer), model),
        hub_errors.explain(
            errors.RevisionNotFoundError("", response=answer), replace(model, revision="v9")
        ),
        hub_errors.no_answer(model),
        hub_errors.explain(OSError(errno.ENOSPC, "No space left on device"), model),
    ]
    assert printed_on(DOCS / "offline.md") == "".join(f"error: {error}\n" for error in printed)


def test_revisions_of_the_offline_page_are_all_there() -> None:
    (table,) = tables(DOCS / "offline.md")
    assert [row for row in table if "entry" not in row[0]] == [
        [f"`{field}`", f"`{revision}`"] for field, revision in REVISIONS.items()
    ]


# The page about trackers


def test_lines_of_the_trackers_page_are_read_and_printed_so(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "trackers.md"
    (here / "metrics.jsonl").write_text(printed_on(page, "Steps that are done again"))
    assert [record["time"] for record in read_metrics(here / "metrics.jsonl")] == [
        1760000000.0,
        1760000601.0,
    ]
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(SailplanError) as caught:
        check_push({})
    assert printed_on(page, "Pushing") == f"error: {caught.value}\n"


# Rows


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[[str], Path]) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_model("qwen2_vl"))


@pytest.fixture
def encode(processor: Any, tiny_model: Callable[[str], Path], here: Path) -> Callable[..., Any]:
    """`encode(rows, settings)` writes rows and their images, and prepares them as a run does."""
    from PIL import Image
    from transformers import AutoConfig

    from sailplan.data.encode import Encoder
    from sailplan.data.formats import resolve_format
    from sailplan.data.images import image_opener
    from sailplan.data.prepare import prepare
    from sailplan.data.sources import load_rows
    from sailplan.model.families import family_of

    family = family_of(AutoConfig.from_pretrained(tiny_model("qwen2_vl")))
    (here / "photos").mkdir()
    for name in ("shoe.jpg", "other.jpg", "square.png"):
        Image.new("RGB", (84, 56), "red").save(here / "photos" / name)

    def call(rows: list[Mapping[str, Any]] | str, settings: str = "", *flags: str) -> Any:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (here / "rows.jsonl").write_text(text)
        (here / "run.yaml").write_text(settings + f"dataset_name: {here}/rows.jsonl\n")
        run = Run.from_file("run.yaml", flags)
        raw = load_rows(run)
        format = resolve_format(run, raw)
        encoder = Encoder.of(run, processor, family)
        return format, prepare(run, raw, format, encoder, image_opener(run, raw)).train

    return call


def settings_of(block: Block) -> str:
    """The run file's lines that stand under the same heading."""
    same = [other for other in blocks(block.page) if other.heading == block.heading]
    return "".join(other.text for other in same if other.kind == "yaml")


@pytest.mark.parametrize("block", of_kind("json"), ids=str)
def test_row_is_a_sample_of_its_format_that_trains(
    encode: Callable[..., Any], block: Block
) -> None:
    from sailplan.data.labels import UNTRAINED

    row = json.loads(block.text)

    format, (encoded,) = encode([row], settings_of(block))

    assert block.page != DATA or format.name == block.heading
    images = format.sample(row)["images"]
    assert len(images) == block.text.count("photos/")
    assert set(encoded["labels"]) != {UNTRAINED}


def test_every_format_has_a_row() -> None:
    choices = field_table()["dataset_format"].choices or ()
    assert {block.heading for block in of_kind("json")} >= set(choices) - {"auto"}


def shoe(image: str = "photos/shoe.jpg", question: str = "<image>What is it?") -> dict[str, Any]:
    turns = [("human", question), ("gpt", "A red shoe.")]
    return {"image": image, "conversations": [{"from": who, "value": text} for who, text in turns]}


DATA_MISTAKES: list[tuple[list[dict[str, Any]] | str, list[str]]] = [
    ('{"text": "A shoe."}\n{"text": "A shoe." "id": 2}\n', []),
    ("version https://git-lfs.github.com/spec/v1\n", []),
    ([{"question": "What is it?", "answer": "A red shoe."}], []),
    (
        [{"Product Name": "Runner 3", "description": "A light red shoe."}],
        ["--user_prompt", "Describe {Name}.", "--answer_column", "description"],
    ),
    ([{"messages": [{"role": "user", "content": "What is it?"}]}], []),
    ([shoe(question="What is it?")], []),
    ([shoe(), shoe("photos/missing.jpg")], []),
    ([shoe("../shoe.jpg")], []),
    ([shoe("https://example.com/shoe.jpg")], []),
    ([shoe("photos/page.jpg")], []),
    ([shoe("photos/huge.png")], []),
    ([shoe()], ["--max_length", "16"]),
]


def test_errors_of_the_data_page_are_printed_so(encode: Callable[..., Any], here: Path) -> None:
    (here / "photos" / "page.jpg").write_text("<!DOCTYPE html><title>Not found</title>")
    (here / "photos" / "huge.png").write_bytes(png_header(20_000, 20_000))
    printed = []
    for rows, flags in DATA_MISTAKES:
        with pytest.raises(SailplanError) as caught:
            encode(rows, "", *flags)
        assert caught.value.exit_code == 4
        printed.append(f"error: {caught.value}\n".replace(str(here.resolve()), "/data"))

    assert printed_on(DATA) == "".join(printed)


def test_limits_on_images_are_those_of_the_code() -> None:
    text = prose(DATA)
    assert f"more than {PIXEL_LIMIT:,} pixels" in text
    assert f"within {TIMEOUT_S:g} s and up to {SIZE_LIMIT_BYTES >> 20} MiB" in " ".join(
        text.split()
    )
    listed = re.search(r"\*\*Kinds\.\*\* (.*?)\.", text, re.DOTALL)
    assert listed
    assert tuple(re.findall(r"[A-Z\d]{3,}", listed[1])) == FORMATS


def test_suffixes_of_data_files_are_those_of_the_code() -> None:
    table = next(table for table in tables(DATA) if table[0][1] == "json")
    assert {
        suffix.strip("`"): kind for suffixes, kind in table for suffix in suffixes.split(", ")
    } == {**BUILDERS, **dict.fromkeys(SUFFIXES, "[archives](#archives)")}


def test_ways_with_long_samples_are_all_there() -> None:
    table = next(table for table in tables(DATA) if table[0][0] == "not written")
    choices = field_table()["over_length"].choices or ()
    assert [row[0] for row in table] == ["not written", *(f"`{way}`" for way in choices)]


# What is trained


def marked(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    """Lines of tokens, `+` trained and `-` not, as the page shows them."""
    lines = [piece.replace("\n", "\\n") for piece in pieces(tokenizer, ids, labels)]
    return "".join(f"{line[0]} {line[1:]}\n" for line in lines)


def rows_of_labels() -> list[Any]:
    """The chat and the text of the page."""
    return [json.loads(block.text) for block in blocks(LABELS) if block.kind == "json"]


@pytest.mark.parametrize("heading", ["What is trained on", "Text without a chat", "All text"])
def test_tokens_are_trained_as_the_page_shows(
    encode: Callable[..., Any], processor: Any, heading: str
) -> None:
    chat, text = rows_of_labels()
    settings = next(settings_of(block) for block in blocks(LABELS) if block.heading == heading)

    _, (row,) = encode([text if "Text" in heading else chat], settings)

    lines = marked(processor.tokenizer, row["input_ids"], row["labels"])
    assert printed_on(LABELS, heading) == lines


def test_trl_trains_as_the_page_shows(processor: Any) -> None:
    from PIL import Image
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    chat, _ = rows_of_labels()
    turns = [
        dict(said, content=said["content"].removeprefix("<image>")) for said in chat["messages"]
    ]

    batch = DataCollatorForVisionLanguageModeling(processor)(
        [{"messages": turns, "images": [Image.new("RGB", (84, 56))]}]
    )

    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert printed_on(LABELS, "What differs from TRL") == marked(processor.tokenizer, ids, labels)


def test_way_of_finding_is_that_of_each_template() -> None:
    """With tokenizers alone: what is found depends on the template, not on the model."""
    from sailplan.data.chat_template import ChatTemplate
    from sailplan.data.labels import Endings, mark_conversation
    from tests.support.tiny import build_tokenizer, chat_template

    families = {
        "Qwen2-VL": ("qwen2_vl", "qwen2_vl"),
        "LLaVA-1.5": ("llava", "llava_1.5"),
        "Pixtral-12B": ("pixtral", "pixtral"),
        "Mistral-Small-3.1, with a system text": ("pixtral", "mistral3"),
        "Llama-3.2-Vision": ("mllama", "llama3.2_vision"),
        "Llama-3.2": ("llama", "llama3.2"),
    }
    found = []
    for name, (family, template) in families.items():
        tokenizer = build_tokenizer(family)
        tokenizer.chat_template = chat_template(template)
        messages = [turn("user", "What?"), turn("assistant", "A."), turn("user", "How many?")]
        if template == "mistral3":
            messages.insert(0, turn("system", "Be brief."))
        got = mark_conversation(
            [*messages, turn("assistant", "Two.")],
            ChatTemplate.of(tokenizer),
            Endings.of(tokenizer, ()),
            everything=False,
        )
        words = got.text[slice(*got.spans[-1])]
        found.append([name, got.method, f"`{words.partition('Two.')[2]}`"])

    assert [table for table in tables(LABELS) if table[0][0] == "Qwen2-VL"] == [found]
