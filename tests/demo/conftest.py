from __future__ import annotations

from pathlib import Path

import pytest

from sailplan.demo.catalogue import write_catalogue


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    write_catalogue(folder, num_train=200, num_test=40, seed=3)
    return folder
