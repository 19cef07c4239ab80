import pytest
import torch

from spear.errors import SpearError
from spear.system.distributed import Ranks
from spear.training.loss import LossNormalizer
from spear.training.task import LossTerm

CPU = torch.device("cpu")


class OneOfTwo(Ranks):
    """Rank 0 of two, with the other rank's sums at hand."""

    def __init__(self, other):
        super().__init__(CPU, 0, 2)
        object.__setattr__(self, "other", other)

    def all_reduce(self, tensor, operation="sum"):
        if operation == "sum":
            tensor += torch.tensor(self.other, dtype=tensor.dtype)
        return tensor


def term(total, count, weight=1.0):
    return LossTerm(total, torch.tensor(float(count)), weight)


def loss_of(normalize, terms):
    divisors = normalize.divisors({name: term.count for name, term in terms.items()})
    return normalize.loss(terms, divisors)


def test_alone_it_is_the_weighted_sum_of_means():
    terms = {"b": term(torch.tensor(6.0), 3, 0.5), "a": term(torch.tensor(8.0), 2)}
    loss = loss_of(LossNormalizer(Ranks(CPU)), terms)
    assert loss.item() == pytest.approx(8 / 2 + 0.5 * 6 / 3)


def test_with_two_ranks_the_divisor_is_global_and_ddps_mean_is_undone():
    parameter = torch.tensor(2.0, requires_grad=True)
    normalize = LossNormalizer(OneOfTwo(other=[9.0]))  # 9 counts there
    loss_of(normalize, {"a": term(parameter * 3, 1, 0.5)}).backward()
    assert parameter.grad.item() == pytest.approx(2 * 0.5 * 3 / 10)


def test_batches_of_a_step_are_divided_by_their_common_count():
    parameter = torch.tensor(2.0, requires_grad=True)
    normalize = LossNormalizer(Ranks(CPU))
    divisors = normalize.divisors({"a": 1.0 + 4.0})
    for total, count in ((3.0, 1), (5.0, 4)):
        normalize.loss({"a": term(parameter * total, count)}, divisors).backward()
    assert parameter.grad.item() == pytest.approx((3.0 + 5.0) / 5)


def test_nothing_to_count_anywhere_gives_zero_and_finite_gradients():
    parameter = torch.tensor(2.0, requires_grad=True)
    terms = {"a": term(parameter * 3, 1), "b": term(parameter * 0, 0)}
    loss = loss_of(LossNormalizer(Ranks(CPU)), terms)
    loss.backward()
    assert loss.item() == 6.0 and parameter.grad.item() == 3.0


def test_a_bfloat16_sum_is_divided_in_float32():
    total = torch.tensor(1000.0, dtype=torch.bfloat16)
    loss = loss_of(LossNormalizer(Ranks(CPU)), {"a": term(total, 3)})
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(total.item() / 3, rel=1e-6)


def test_terms_may_not_come_and_go():
    normalize = LossNormalizer(Ranks(CPU))
    divisors = normalize.divisors({"a": 1.0})
    with pytest.raises(SpearError, match=r"\['a'\] before and has \['a', 'b'\] now"):
        normalize.divisors({"a": 1.0, "b": 1.0})
    with pytest.raises(SpearError, match=r"terms \['b'\] and counts for \['a'\]"):
        normalize.loss({"b": term(torch.tensor(1.0), 1)}, divisors)
    with pytest.raises(SpearError):
        LossNormalizer(Ranks(CPU)).divisors({})
