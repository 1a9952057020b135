"""Word vectors from a file in GloVe's format."""

import pytest
import torch

from lightning_cil.networks import class_vectors

LINES = ["the 9 9", "cat 1 2", "tv 1 0", "monitor 3 4", "dining 0 0", "table 2 2", "traffic_light 5 6", "light 7 7"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_names_words_and_spellings(file):
    vectors = class_vectors(file, ["cat", "tvmonitor", "traffic light", "Dining Table"], 2)
    assert vectors.tolist() == [[1, 2], [2, 2], [5, 6], [1, 1]]
    assert class_vectors(file, [], 2).shape == (0, 2)


def test_bad_files_are_named(file, tmp_path):
    with pytest.raises(ValueError, match=r"no vectors for \['dog', 'traffic cat'\]"):
        class_vectors(file, ["cat", "dog", "traffic cat"], 2)
    with pytest.raises(ValueError, match=r"line 2 of `vectors=.*does not hold a word and 3 numbers"):
        class_vectors(file, ["cat"], 3)
    with pytest.raises(FileNotFoundError, match="is no file, expected GloVe's text format"):
        class_vectors(tmp_path / "none.txt", ["cat"], 2)
    assert torch.equal(class_vectors(str(file), ["light"], 2), torch.tensor([[7.0, 7.0]]))
