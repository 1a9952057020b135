"""`MLFineTune`: the loss of the current task's labels, and the classes of old tasks that it forgets."""

from pathlib import Path

from lightning_cil.methods import MLFineTune
from tests.methods.test_multilabel import adam, digits
from tests.streams import fit, make, results


def test_it_learns_the_new_classes_and_forgets_the_old_ones(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(MLFineTune, epochs=6, optimizer=adam), digits(train_images=300))
    matrix = results(trainer)["matrix"]["task_il"]
    assert min(matrix[i][i] for i in range(3)) > 0.7
    assert matrix[2][0] < matrix[0][0] - 0.1
    assert results(trainer)["multilabel"]["AF"] > 0.1
