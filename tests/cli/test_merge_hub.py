"""`sailplan merge` of an adapter whose base is on the hub, at the commit that it names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.fake_hub import serve


def merge(*arguments: object, env: dict[str, str]) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "sailplan", "merge", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, **env}
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "pinned",
    [pytest.param(True, id="revision"), pytest.param(False, id="main", marks=pytest.mark.slow)],
)
def test_base_on_the_hub_is_fetched_at_its_revision_and_found_again_without_network(
    tmp_path: Path, tiny_model: Callable[[str], Path], pinned: bool
) -> None:
    first = tiny_model("llama")
    base = AutoModelForCausalLM.from_pretrained(first)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(tmp_path / "run")
    again = AutoModelForCausalLM.from_pretrained(first)
    expected = PeftModel.from_pretrained(again, tmp_path / "run").merge_and_unload().state_dict()

    with serve() as hub:
        commit = hub.commit("model", "owner/tiny", first)
        if pinned:  # the branch has moved on since, to weights of another model
            other = AutoModelForCausalLM.from_config(base.config)
            other.save_pretrained(tmp_path / "other")
            hub.commit("model", "owner/tiny", tmp_path / "other")
        path = tmp_path / "run" / "adapter_config.json"
        settings = {"base_model_name_or_path": "owner/tiny", "revision": commit if pinned else None}
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
        env = hub.environment(tmp_path / "home")

        code, out, err = merge(tmp_path / "run", "-o", tmp_path / "out", env=env)
        assert code == 0, err
        assert commit in out

    offline = {**env, "HF_HUB_OFFLINE": "1"}
    code, out, err = merge(tmp_path / "run", "-o", tmp_path / "offline", env=offline)
    assert code == 0, err
    for folder in ("out", "offline"):
        found = load_file(tmp_path / folder / "model.safetensors")
        assert all(found[name].equal(expected[name]) for name in found)


def test_base_that_is_not_here_is_told_where_the_hub_is_switched_off(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/none", "r": 4})
    )
    torch.save(
        {"base_model.model.x.lora_A.weight": torch.ones(4, 2)}, tmp_path / "adapter_model.bin"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path)}
    code, _, err = merge(tmp_path, "-o", tmp_path / "out", env=env)
    assert code == 3
    assert "owner/none" in err
    assert err.count("\n") == 1
