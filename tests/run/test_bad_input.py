"""Each mistake in a run file or a flag is one line that says where it is and what would do."""

from __future__ import annotations

import pytest

from sailplan.errors import RunFileError
from sailplan.run.config import Run

FILES = {
    "unknown key": (
        "seed: 1\nlearning_rat: 1e-4\n",
        ":2: unknown key 'learning_rat'; did you mean learning_rate?",
    ),
    "unknown key, nothing near": ("qqqqq: 1\n", ":1: unknown key 'qqqqq'"),
    "legacy misspelt": ("torch_dtyp: auto\n", "did you mean torch_dtype?"),
    "accelerate misspelt": ("num_procesess: 2\n", "did you mean num_processes?"),
    "prefix of a key": ("learning: 1\n", ":1: unknown key 'learning'"),
    "list for a number": ("learning_rate: [1]\n", ":1: learning_rate is [1]; allowed: a number"),
    "word for a number": (
        "num_train_epochs: lots\n",
        "num_train_epochs is 'lots'; allowed: a number",
    ),
    "fraction for a count": ("max_steps: 1.5\n", "max_steps is '1.5'; allowed: a whole number"),
    "infinite number": ("learning_rate: .inf\n", "learning_rate is '.inf'"),
    "not a number": ("learning_rate: nan\n", "learning_rate is 'nan'"),
    "number for a bool": ("bf16: 2\n", "bf16 is '2'; allowed: true or false"),
    "null for a number": ("learning_rate: null\n", "learning_rate is 'null'"),
    "mapping for a text": ("output_dir: {a: b}\n", 'output_dir is {"a": "b"}; allowed: a text'),
    "text for a mapping": ("lr_scheduler_kwargs: abc\n", "which is no JSON mapping"),
    "text in a list of texts": ("lora_target_modules: [[a]]\n", "lora_target_modules is"),
    "no choice": ("dtype: bf16\n", "dtype is 'bf16'; allowed: auto, bfloat16, float16, float32"),
    "no enumeration value": ("lr_scheduler_type: cosinus\n", "allowed: linear, cosine"),
    "object": ("parallelism_config: {a: 1}\n", "parallelism_config is"),
    "key twice": ("seed: 1\nbf16: true\nseed: 2\n", ":3: seed is written twice; first in line 1"),
    "key twice in a block": ("launch:\n  gpu: L4\n  gpu: L4\n", ":3: gpu is written twice"),
    "list": ("- seed: 1\n", "holds a list, not settings"),
    "text": ("hello\n", "holds a text, not settings"),
    "empty": ("# nothing\n", "is empty"),
    "web page": ("<!DOCTYPE html>\n<html><body>a: b: c</body></html>\n", ":2: not YAML"),
    "broken": ("seed: [1\nbf16: true\n", "not YAML"),
    "tab": ("launch:\n\tgpu: L4\n", ":2: not YAML"),
    "control character": ("seed: \x01\n", "not YAML"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "not YAML"),
    "python object": ("seed: !!python/object/apply:os.system [ls]\n", "seed is"),
    "unknown tag": ("seed: !secret 1\n", "allowed: plain YAML values"),
    "alias in itself": ("datasets: &a [*a]\n", "nested too deeply"),
    "aliases without end": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{n}: &{n} [{', '.join(['*' + o] * 9)}]\n"
            for o, n in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "its aliases unfold to more than 100000 values",
    ),
    "secret of a wrong type": (
        "hub_token: {a: hf_abc}\n",
        "hub_token is (hidden); allowed: a text",
    ),
    "key is a list": ("? [a]\n: 1\n", "a key is a list"),
    "both words for one": (
        "torch_dtype: float16\ndtype: bfloat16\n",
        "(now dtype) is 'float16', but dtype is 'bfloat16'",
    ),
    "negative learning rate": (
        "learning_rate: -1e-4\n",
        "learning_rate is -0.0001; allowed: 0 or more",
    ),
    "rank 0": ("lora_r: 0\n", "lora_r is 0; allowed: 1 or more"),
    "dropout 1": ("lora_dropout: 1\n", "allowed: 0 or more and below 1"),
    "batch 0": ("per_device_train_batch_size: 0\n", "allowed: 1 or more"),
    "epochs 0": ("num_train_epochs: 0\n", "allowed: above 0"),
    "4 and 8 bit": (
        "load_in_4bit: true\nload_in_8bit: true\nuse_peft: true\n",
        "both true; keep one",
    ),
    "4 bit, full": ("seed: 1\nload_in_4bit: true\n", ":2: load_in_4bit with full fine-tuning"),
    "8 bit, full": ("load_in_8bit: true\nuse_peft: false\n", "write use_peft: true, or drop it"),
    "empty output": ("output_dir: ''\n", ":1: output_dir is empty; allowed: a folder"),
    "fp16 and bf16": ("fp16: true\nbf16: true\n", "fp16 and bf16 are both true"),
    "pixels swapped": (
        "min_pixels: 200\nmax_pixels: 100\n",
        "min_pixels is 200, more than max_pixels 100",
    ),
    "held-out 1.5": ("eval_size: 1.5\n", "allowed: a count of rows, or a fraction below 1"),
    "warmup 2": ("warmup_ratio: 2\n", "warmup_ratio is '2'; allowed: 0 or more and below 1"),
    "unknown block key": (
        "launch:\n  gpu: L4\n  gpus: 8\n",
        ":3: unknown key launch.gpus; did you mean gpus_per_node?",
    ),
    "unknown strategy": (
        "launch: {strategy: zero4}\n",
        "launch.strategy is 'zero4'; allowed: 'auto', 'single'",
    ),
    "gpus 0": (
        "launch: {gpus_per_node: 0}\n",
        "launch.gpus_per_node is '0'; allowed: greater than or equal to 1",
    ),
    "gpus some": (
        "launch: {gpus_per_node: some}\n",
        "launch.gpus_per_node is 'some'; allowed: a whole number",
    ),
    "job script line": ('slurm: {partition: "a\\n#SBATCH -w x"}\n', "slurm.partition is"),
    "block list": ("launch: [1]\n", "launch is [1]; allowed: a mapping"),
    "env list": ("env: [A]\n", "env is no mapping; allowed: NAME: value lines"),
    "env nested": ("env: {A: {B: 1}}\n", "env.A is a dict; allowed: one value"),
    "datasets mapping": ("datasets: {path: a}\n", "datasets is"),
    "dataset without path": ("datasets: [{name: a}]\n", "an entry has no path"),
    "dataset unknown key": ("datasets: [{path: a, spilt: b}]\n", "unknown key 'spilt'"),
    "dataset wrong type": ("datasets: [{path: a, fraction: x}]\n", "fraction 'x'"),
    "accelerate config": ("accelerate_config: zero9\n", "neither a file nor a preset; allowed: "),
    "accelerate wrong type": (
        "num_processes: many\n",
        "num_processes is 'many'; allowed: a whole number",
    ),
    "accelerate no choice": ("mixed_precision: fp32\n", "allowed: no, fp16, bf16, fp8"),
}


@pytest.mark.parametrize("case", FILES)
def test_run_file_wrong_is_one_line(tmp_path, case):
    text, message = FILES[case]
    path = tmp_path / "train.yaml"
    path.write_text(text)

    with pytest.raises(RunFileError) as error:
        Run.from_file(path)

    assert message in str(error.value)
    assert "train.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--learning_rat 1", "--learning_rat: unknown flag; did you mean learning_rate?"),
        ("--learning 1", "--learning: unknown flag"),
        ("--learning_rate", "--learning_rate has no value; allowed: a number"),
        ("--run_name --bf16", "--run_name has no value"),
        ("--seed 1 2", "unexpected argument '2' after --seed 1"),
        ("--bf16 maybe", "--bf16: bf16 is 'maybe'; allowed: true or false"),
        ("train.yaml --bf16", "unexpected argument 'train.yaml'"),
        ("--config", "--config has no value"),
        ("--config none.yaml", "no run file none.yaml"),
        ("--no_learning_rate", "unknown flag"),
        ("--launch.gpus 1", "unknown key launch.gpus"),
        ("--launch.gpu", "--launch.gpu has no value"),
        ("--lunch.gpus_per_node 1", "unknown flag"),
        ("--learning_rate=-1", "--learning_rate: learning_rate is -1; allowed: 0 or more"),
    ],
)
def test_flag_wrong_is_one_line(flags, message):
    with pytest.raises(RunFileError) as error:
        Run.from_flags(flags.split())

    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_run_file_missing_or_directory_or_binary_is_one_line(tmp_path):
    with pytest.raises(RunFileError, match=r"no run file .*none\.yaml"):
        Run.from_file(tmp_path / "none.yaml")
    with pytest.raises(RunFileError, match="is a directory, not a run file"):
        Run.from_file(tmp_path)
    (tmp_path / "model.yaml").write_bytes(b"\x80\x02\xff\xfe")
    with pytest.raises(RunFileError, match="is not UTF-8 text"):
        Run.from_file(tmp_path / "model.yaml")
    (tmp_path / "file").touch()
    with pytest.raises(RunFileError, match=r"cannot read .*: Not a directory"):
        Run.from_file(tmp_path / "file" / "a.yaml")


def test_run_file_error_has_its_exit_code(tmp_path):
    with pytest.raises(RunFileError) as error:
        Run.from_file(tmp_path / "none.yaml")
    assert error.value.exit_code == 2
