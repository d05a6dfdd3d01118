import pytest
import torch

from tests.engine import tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folder and Hugging Face model of a family, made once when first asked for."""
    made = {}

    def get(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = folder, tiny.make_checkpoint(folder, family)
        return made[family]

    return get
