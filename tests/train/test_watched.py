"""Answers to held-out rows in trackers, through their real packages, without a network."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler, TrainerState

from sailplan.train.watched import NAME, Answered, Trackers


def has(package: str) -> Any:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed; it is no requirement")


@pytest.fixture
def rows(tmp_path: Path) -> list[Answered]:
    """Two rows, one of two images and one of none."""
    images = tuple(tmp_path / f"0-{number}.webp" for number in range(2))
    for path, size in zip(images, ((40, 30), (20, 60)), strict=True):
        Image.new("RGB", size, (200, 30, 30)).save(path)
    return [
        Answered(
            place="row 3",
            prompt="<image><image>Which **colour**?",
            reference="red",
            answer="<b>blue</b>",
            images=images,
        ),
        Answered(place="row 4", prompt="Say no.", reference="no", answer="no", images=()),
    ]


def trackers(*callbacks: Any) -> Trackers:
    return Trackers(CallbackHandler(list(callbacks), None, None, None, None))


def test_tensorboard_has_texts_of_every_evaluation_and_images_once_before_it_is_closed(
    tmp_path: Path, rows: list[Answered]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(log_dir=str(tmp_path / "curves"))
    shown = trackers(TensorBoardCallback(writer))
    for step in (2, 4):
        assert shown.show(step, rows) == []

    found = EventAccumulator(str(tmp_path / "curves")).Reload()  # as after a crash
    texts = [tag for tag in found.Tags()["tensors"] if tag.startswith(NAME)]
    assert texts == [f"{NAME}/row 3/text_summary", f"{NAME}/row 4/text_summary"]
    events = found.Tensors(texts[0])
    assert [event.step for event in events] == [2, 4]
    text = events[0].tensor_proto.string_val[0].decode()
    # Four spaces make it a block in which Markdown and HTML are letters.
    assert text.splitlines()[2] == "    answer: <b>blue</b>"
    images = {tag: found.Images(tag) for tag in found.Tags()["images"]}
    assert {tag: [(i.step, i.width, i.height) for i in of] for tag, of in images.items()} == {
        f"{NAME}/row 3, image 1": [(2, 40, 30)],
        f"{NAME}/row 3, image 2": [(2, 20, 60)],
    }
    writer.close()


@pytest.fixture
def wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import wandb

    for name, value in {
        "MODE": "offline",
        "SILENT": "true",
        "DIR": str(tmp_path),
        "DATA_DIR": str(tmp_path / "data"),
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.init(project="tests")
    yield tmp_path / "wandb"
    wandb.finish()


@has("wandb")
def test_wandb_has_a_table_with_images_of_every_evaluation(
    wandb_run: Path, rows: list[Answered]
) -> None:
    shown = trackers(WandbCallback())
    for step in (2, 4):
        assert shown.show(step, rows) == []

    tables = [json.loads(path.read_text()) for path in wandb_run.rglob("media/table/*.json")]
    assert sorted(table["data"][0][0] for table in tables) == [2, 4]
    columns = ["step", "row", "image 1", "image 2", "prompt", "reference", "answer"]
    assert all(table["columns"] == columns for table in tables)
    assert tables[0]["data"][0][-1] == "<b>blue</b>"
    assert tables[0]["data"][1][1:4] == ["row 4", None, None]
    files = [path for path in wandb_run.rglob("media/images/**/*") if path.is_file()]
    assert [path.suffix for path in files] == [".webp", ".webp"]


@has("mlflow")
def test_mlflow_has_one_table_and_the_images(
    tmp_path: Path, rows: list[Answered], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # all that the skinny package has
    mlflow.set_tracking_uri(f"file://{tmp_path / 'runs'}")
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True)
    callback = MLflowCallback()
    callback.setup(arguments, TrainerState(), None)
    shown = trackers(callback)
    for step in (2, 4):
        assert shown.show(step, rows) == []

    table = mlflow.load_table(f"{NAME}.json")
    assert table["step"].tolist() == [2, 2, 4, 4]
    assert table["answer"].tolist() == ["<b>blue</b>", "no"] * 2
    assert table["image 2"].dropna().tolist() == ["0-1.png"] * 2
    folder = mlflow.artifacts.download_artifacts(
        artifact_path=NAME, run_id=mlflow.active_run().info.run_id
    )
    with Image.open(Path(folder) / "0-1.png") as image:
        assert image.size == (20, 60)
    mlflow.end_run()


@has("trackio")
def test_trackio_has_a_table_of_every_evaluation(
    tmp_path: Path, rows: list[Answered], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio
    from transformers.integrations import TrackioCallback

    trackio.init(project="tests", name="run", embed=False)
    shown = trackers(TrackioCallback())
    for step in (2, 4):
        assert shown.show(step, rows) == []
    trackio.finish()

    from trackio.sqlite_storage import SQLiteStorage

    logged = [entry[NAME] for entry in SQLiteStorage.get_logs("tests", "run") if NAME in entry]
    assert len(logged) == 2
    first, second = logged[0]["_value"]
    assert first["answer"] == "<b>blue</b>"
    assert first["image 1"]["_type"] == "trackio.image"
    assert second["image 1"] is None


def test_tracker_that_fails_is_left_and_the_others_go_on(
    tmp_path: Path, rows: list[Answered]
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    class Closed(WandbCallback):
        """As after its service has gone."""

        def __init__(self) -> None:
            self._wandb = self

        @property
        def run(self) -> Any:
            raise ConnectionError("the service has gone\nand more")

    writer = SummaryWriter(log_dir=str(tmp_path / "curves"))
    shown = trackers(Closed(), TensorBoardCallback(writer))

    assert shown.show(1, rows) == [("W&B", "ConnectionError: the service has gone")]
    assert shown.show(2, rows) == []
    writer.close()
    assert list((tmp_path / "curves").iterdir())
