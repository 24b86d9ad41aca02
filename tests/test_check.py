"""gencore.check: shapes, ranges and names at the door."""

import numpy as np
import pytest
import torch

from gencore import check
from gencore.check import DataError, InputError, UnknownNameError, dims, in_range, nearest, unknown


def test_dims_gives_the_sizes_in_order():
    assert dims("codes", torch.zeros(2, 4, 50), "B K T", K=4) == (2, 4, 50)
    assert dims("pictures", torch.zeros(2, 3, 8, 8), "B 3 H W") == (2, 3, 8, 8)


def test_a_wrong_size_is_named_with_the_whole_shape():
    with pytest.raises(InputError, match=r"^codes: K should be 4, got 8 in shape \(2, 8, 50\)$"):
        dims("codes", torch.zeros(2, 8, 50), "B K T", K=4)
    with pytest.raises(InputError, match=r"^pictures: 3 should be 3, got 1 in shape"):
        dims("pictures", torch.zeros(2, 1, 8, 8), "B 3 H W")


def test_a_wrong_number_of_dimensions_is_named():
    with pytest.raises(InputError, match=r"^x: expected 3 dimensions \(B T D\), got 2 in shape \(5, 6\)$"):
        dims("x", torch.zeros(5, 6), "B T D")


def test_something_without_a_shape_is_an_input_error():
    with pytest.raises(InputError, match="x should be a tensor .*got list"):
        dims("x", [1, 2, 3], "B T D")


@pytest.mark.parametrize("kind", ["InputError", "UnknownNameError", "ConfigError", "CheckpointError", "DataError"])
def test_every_kind_of_error_is_ours_and_a_value_error(kind):
    assert issubclass(getattr(check, kind), check.CommonthreadError)
    assert issubclass(getattr(check, kind), ValueError)


def test_nearest_suggests_only_what_is_close():
    assert nearest("novellist", ["novelist", "painter"]) == ' (did you mean "novelist"?)'
    assert nearest("xyz", ["novelist", "painter"]) == ""
    assert nearest(7, []) == ""


def test_unknown_lists_what_is_known():
    error = unknown("model", "paintr", ["painter", "novelist"])
    assert isinstance(error, UnknownNameError)
    assert str(error) == 'unknown model "paintr" (did you mean "painter"?): known are novelist, painter'
    assert str(unknown("voice", "x", [])).endswith("known are none")


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", None, True])
def test_values_out_of_range_or_of_another_type_are_refused(value):
    with pytest.raises(InputError, match="guidance should be between 0 and 1, got"):
        in_range("guidance", value, 0, 1)


def test_values_in_range_pass():
    assert in_range("guidance", 0.5, 0, 1) == 0.5
    assert in_range("steps", 3, 1, 3) == 3


@pytest.mark.parametrize("value", [0, 11, 2.5, 2.0, True, "5", None, float("nan"), np.float32(2), 2 ** 70])
def test_what_is_no_whole_number_in_range_is_refused(value):
    with pytest.raises(InputError, match="^steps should be a whole number between 1 and 10, got"):
        check.whole("steps", value, 1, 10)


def test_whole_numbers_of_numpy_become_those_of_python():
    assert check.whole("steps", np.int64(3), 1, 10) == 3 and type(check.whole("steps", np.int64(3), 1)) is int


@pytest.mark.parametrize("seed", [-1, 2 ** 70, 2 ** 63 - 1, 1.0, True, "1"])
def test_seeds_that_torch_does_not_take_are_refused(seed):
    with pytest.raises(InputError, match="^seed should be a whole number between 0 and"):
        check.seeds_of(seed, 2)


def test_seeds_count_up_and_new_ones_follow_torch():
    assert check.seeds_of(7, 3) == [7, 8, 9]
    drawn = check.seeds_of(None)
    assert drawn != check.seeds_of(None)
    torch.manual_seed(0)
    assert drawn == check.seeds_of(None)                          # conftest.py began with this seed


@pytest.mark.parametrize("dtype, found", [("bfloat16", torch.bfloat16), ("torch.float16", torch.float16), (torch.float32, torch.float32),
                                          (None, None)])
def test_dtypes_go_by_their_names(dtype, found):
    assert check.floating(dtype) is found


@pytest.mark.parametrize("dtype", ["bf16", "auto", "int8", "nn", "", torch.int8, 16, float])
def test_what_weights_can_not_be_is_refused(dtype):
    with pytest.raises(InputError, match="^dtype should be a floating one of torch"):
        check.floating(dtype)


@pytest.mark.parametrize("device", [torch.bfloat16, "gpu", None, 1.5])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InputError, match='^expected a device such as "cpu"'):
        check.only_device(device)


@pytest.mark.parametrize("device", ["cuba", "cuda:99", "xpu", torch.float32])
def test_a_device_that_this_machine_has_not_is_refused(device):
    assert check.present("cpu") == check.present(None) == torch.device("cpu")
    with pytest.raises(InputError, match='^device should be one of this machine, such as "cpu", "cuda" or "mps", got'):
        check.present(device)


def test_a_command_ends_in_one_line(capsys):
    @check.command
    def main():
        raise DataError("there is nothing to read")

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and capsys.readouterr() == ("", "error: there is nothing to read\n")
    assert check.command(lambda: 5)() == 5
    with pytest.raises(ZeroDivisionError):                  # our own bugs show where they are
        check.command(lambda: 1 / 0)()
