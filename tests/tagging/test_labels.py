"""Label files: what they say, and what is refused."""

import pytest

from spear.errors import DataError
from spear.tagging.labels import Classes, read_labels


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_labels_are_separated_by_commas_and_may_have_spaces(write):
    path = write("utt2labels", "a dog bark,rain\nb rain\nc\nd rain, rain,\n")
    assert read_labels([path]) == {
        "a": ("dog bark", "rain"), "b": ("rain",), "c": (), "d": ("rain",),
    }  # fmt: skip


def test_files_add_up_and_must_not_contradict_each_other(write):
    first, second = write("one", "a rain\n"), write("two", "b wind\n")
    assert list(read_labels([first, second])) == ["a", "b"]
    with pytest.raises(DataError, match="'a' has its labels in another file"):
        read_labels([first, write("three", "a wind\n")])
    with pytest.raises(DataError, match=r"data\.labels"):
        read_labels([])


def test_a_file_of_classes_gives_order_and_names(write):
    classes = Classes.load(write("classes", "/m/2 Dog bark\n/m/1\n"))
    assert classes == Classes(("/m/2", "/m/1"), ("Dog bark", "/m/1"))
    assert classes.numbers({"x": ("/m/1",), "y": (), "z": ("/m/1", "/m/2")}, "file") == [
        [1], [], [1, 0],
    ]  # fmt: skip


def test_without_such_a_file_classes_are_the_labels_sorted():
    assert Classes.of(["b", "a", "b"]).labels == ("a", "b")


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(DataError, match=r"file: 1 labels are not among the 1 classes, e.g. 'c'"):
        Classes.of(["a"]).numbers({"x": ("a", "c")}, "file")


def test_two_classes_of_one_name_are_refused(write):
    with pytest.raises(DataError, match="two classes are called 'Dog'"):
        Classes.load(write("classes", "1 Dog\n2 Dog\n"))
