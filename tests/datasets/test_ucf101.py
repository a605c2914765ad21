"""UCF101's lists as unpacked archives hold them, variants and mistakes."""

from itertools import product

import pytest

from aux_code.datasets.ucf101 import Ucf101
from aux_code.errors import UserError
from tests.datasets.media import write_lines


def make_ucf101(root, folder="Videos", line_end="\n", n_groups=5, clips=(1, 2)):
    """Empty files in the real layout: the index does not decode."""
    train, test = [], []
    actions = enumerate(("ApplyEyeMakeup", "YoYo"), 1)
    for group, (label, action), clip in product(range(1, n_groups + 2), actions, clips):
        name = f"{action}/v_{action}_g{group:02d}_c{clip:02d}.avi"
        write_lines(root / folder / name)
        train += [f"{name} {label}"] if group > 1 else []
        test += [name] if group == 1 else []
    classes = ["1 ApplyEyeMakeup", "2 YoYo"]
    files = {"classInd.txt": classes, "trainlist01.txt": train, "testlist01.txt": test}
    for name, lines in files.items():
        write_lines(root / "ucfTrainTestlist" / name, *lines, "", line_end=line_end)
    return root


@pytest.mark.parametrize("folder", ["Videos", "UCF-101"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_both_layouts_and_line_ends(tmp_path, folder, line_end):
    root = make_ucf101(tmp_path, folder, line_end)
    train, test = Ucf101(root), Ucf101(root, train=False)
    assert (len(train), len(test)) == (20, 4)
    assert train.classes == ["", "ApplyEyeMakeup", "YoYo"] and train.num_classes == 3
    assert [(item.label, item.group) for item in test] == [(1, 1), (1, 1), (2, 1), (2, 1)]
    assert train[0].path == root / folder / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g02_c01.avi"
    assert train.missing == []


def test_validation_part_splits_by_group_and_seed(tmp_path):
    root = make_ucf101(tmp_path, n_groups=10)
    choices = set()
    for seed in range(5):
        options = {"validation_fraction": 0.2, "seed": seed}
        fit, *twice = (Ucf101(root, validation=part, **options) for part in (False, True, True))
        groups, held_out, again = ({item.group for item in part} for part in (fit, *twice))
        assert len(held_out) == 2 and not groups & held_out and held_out == again
        assert groups | held_out == set(range(2, 12))
        assert len(fit) + len(twice[0]) == len(Ucf101(root))
        choices.add(frozenset(held_out))
    assert len(choices) > 1
    assert len(Ucf101(root, train=False, validation_fraction=0.2)) == 4


@pytest.mark.parametrize("file, content, match", [
    ("classInd.txt", "1 ApplyEyeMakeup\ntwo YoYo\n", r"classInd.txt, line 2.*'two YoYo'"),
    ("classInd.txt", "1 ApplyEyeMakeup\n3 YoYo\n", "without a gap"),
    ("trainlist01.txt", "\n\nYoYo/v_YoYo.avi 2\n", r"trainlist01.txt, line 3"),
    ("trainlist01.txt", "YoYo/v_YoYo_g02_c01.avi 1\n", "class index 2"),
    ("trainlist01.txt", "YoYo/v_YoYo_g02_c01.avi 2\n" * 2, "line 2.*listed once"),
    ("trainlist01.txt", "Jump/v_Jump_g02_c01.avi 2\n", "known class"),
    ("trainlist01.txt", "", "trainlist01.txt is empty"),
    ("trainlist01.txt", "YoYo/v_YoYo_g02_c99.avi 2\n", "1 of 1 UCF101 videos.*_g02_c99.avi"),
])  # fmt: skip
def test_broken_lists_name_file_and_line(tmp_path, file, content, match):
    root = make_ucf101(tmp_path)
    (root / "ucfTrainTestlist" / file).write_text(content)
    with pytest.raises(UserError, match=match):
        Ucf101(root)


def test_few_missing_videos_are_left_out_with_a_warning(tmp_path, caplog):
    root = make_ucf101(tmp_path, n_groups=30)
    gone = Ucf101(root)[5].path
    gone.unlink()
    data = Ucf101(root)
    assert data.missing == [gone] and len(data) == 119 and gone.name in caplog.text


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match=r"UCF101_ROOT.*TED_SPAD_DATA_ROOT.*aux_code.miniature"):
        Ucf101(tmp_path / "absent")
    root = make_ucf101(tmp_path)
    wrong = ({"split": 4}, {"validation_fraction": 1.0}, {"validation": True}, {"split": 2})
    for arguments in wrong:
        with pytest.raises(UserError):
            Ucf101(root, **arguments)
