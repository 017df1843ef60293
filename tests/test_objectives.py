"""The objectives against numbers worked out by hand, finite differences, and sentence-transformers' InfoNCE."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from recbole_vlm2rec.objectives import crtr, info_nce, margin, penalty_statistics, penalty_weight, wpcl

# B = 2. Sequence 0 points along x and sequence 1 along y on both sides; lengths differ to show that only directions count.
# Text cosines s(z_u, e_j) = [[1, 0], [0, 1]]: margins 1 and 1.
# Image cosines = [[0.6, 0.8], [0.8, 0.6]]: margins 0.6 - 0.8 = -0.2 twice; the image is the weaker side.
Z_TEXT = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
E_TEXT = torch.tensor([[3.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
Z_IMAGE = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
E_IMAGE = torch.tensor([[0.6, 0.8], [1.6, 1.2]], dtype=torch.float64)
SIDES = (Z_TEXT, Z_IMAGE, E_TEXT, E_IMAGE)
# Fused: z = (3, 0), (0, 5); e = (3.6, 0.8), (1.6, 1.7).
FUSED_LENGTHS = math.hypot(3.6, 0.8), math.hypot(1.6, 1.7)
FUSED = [[3.6 / FUSED_LENGTHS[0], 1.6 / FUSED_LENGTHS[1]], [0.8 / FUSED_LENGTHS[0], 1.7 / FUSED_LENGTHS[1]]]
ONE = torch.tensor(1.0, dtype=torch.float64)
# w with alpha = beta = 1 and the gap 1.2: 1 + log(1 + e^1.2).
WEIGHT = 1 + math.log(1 + math.exp(1.2))

# B = 3, two users per item below. Cosines s(z_u, e_j) of QUERY with TARGET: [[1, 0, 0.6], [0, 1, 0.8], [0.8, 0.6, 0.96]].
QUERY = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.8, 0.6]], dtype=torch.float64)
TARGET = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)


def sides(batch=5, width=4, seed=0, dtype=torch.float64):
    """Random z_text, z_image, e_text, e_image."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, width, generator=generator, dtype=dtype).requires_grad_() for _ in range(4))


def scalars(alpha=1.0, beta=1.0, dtype=torch.float64):
    return tuple(torch.tensor(value, dtype=dtype, requires_grad=True) for value in (alpha, beta))


# --- InfoNCE (eq. 3)


def test_info_nce_by_hand():
    """Rows of cosines [1, 0] and [0, 1] at tau = 0.5: both log(1 + exp(-1 / 0.5))."""
    assert info_nce(Z_TEXT, E_TEXT, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_info_nce_of_three_by_hand():
    """tau = 1. Row 0: positive 1, negatives 0 and 0.6; row 1: 1, 0 and 0.8; row 2: 0.96, 0.8 and 0.6."""
    rows = [
        math.log(1 + math.exp(-1) + math.exp(-0.4)),
        math.log(1 + math.exp(-1) + math.exp(-0.2)),
        math.log(1 + math.exp(-0.16) + math.exp(-0.36)),
    ]
    assert info_nce(QUERY, TARGET, 1.0).item() == pytest.approx(sum(rows) / 3)


def test_equal_items_are_no_negatives():
    """Users 0 and 2 bought item 7: row 0 keeps the negative 0 (of user 1), row 2 the negative 0.6; row 1 keeps both."""
    rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-1) + math.exp(-0.2)), math.log(1 + math.exp(-0.36))]
    assert info_nce(QUERY, TARGET, 1.0, item_ids=torch.tensor([7, 9, 7])).item() == pytest.approx(sum(rows) / 3)


def test_a_users_own_targets_are_no_negatives():
    """Rows 0 and 1 are one user's: row 0 keeps the negative 0.6, row 1 keeps 0.8; row 2 keeps both. And with item ids too."""
    rows = [math.log(1 + math.exp(-0.4)), math.log(1 + math.exp(-0.2)), math.log(1 + math.exp(-0.16) + math.exp(-0.36))]
    users = torch.tensor([4, 4, 5])
    assert info_nce(QUERY, TARGET, 1.0, user_ids=users).item() == pytest.approx(sum(rows) / 3)
    # Rows 0 and 2 share the item: row 0 has no negative left and loss 0, row 2 keeps the negative 0.6.
    rows = [0, math.log(1 + math.exp(-0.2)), math.log(1 + math.exp(-0.36))]
    assert info_nce(QUERY, TARGET, 1.0, item_ids=torch.tensor([7, 9, 7]), user_ids=users).item() == pytest.approx(sum(rows) / 3)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_info_nce_is_sentence_transformers(temperature):
    """Loss and gradient of MultipleNegativesRankingLoss, whose `scale` is 1 / tau."""
    pytest.importorskip("sentence_transformers")
    try:
        from sentence_transformers.sentence_transformer import losses
    except ImportError:  # before version 6
        from sentence_transformers import losses
    generator = torch.Generator().manual_seed(3)
    pair = [torch.randn(16, 8, generator=generator, requires_grad=True) for _ in range(2)]
    loss = losses.MultipleNegativesRankingLoss(model=None, scale=1 / temperature)
    theirs = loss.compute_loss_from_embeddings(pair, labels=None)
    ours = info_nce(*pair, temperature)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for mine, other in zip(torch.autograd.grad(ours, pair), torch.autograd.grad(theirs, pair), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


# --- Margin (eq. 6)


def test_margin_by_hand():
    assert margin(Z_TEXT, E_TEXT).tolist() == pytest.approx([1, 1])
    assert margin(Z_IMAGE, E_IMAGE).tolist() == pytest.approx([-0.2, -0.2])
    # 1 - (0 + 0.6) / 2, 1 - (0 + 0.8) / 2, 0.96 - (0.8 + 0.6) / 2
    assert margin(QUERY, TARGET).tolist() == pytest.approx([0.7, 0.6, 0.26])


def test_margin_leaves_out_what_is_no_negative():
    # Row 0: 1 - 0; row 1 has both; row 2: 0.96 - 0.6.
    assert margin(QUERY, TARGET, item_ids=torch.tensor([7, 9, 7])).tolist() == pytest.approx([1, 0.6, 0.36])
    # Row 0: 1 - 0.6; row 1: 1 - 0.8; row 2 has both.
    assert margin(QUERY, TARGET, user_ids=torch.tensor([4, 4, 5])).tolist() == pytest.approx([0.4, 0.2, 0.26])


# --- Penalty weight (eq. 8, 9)


def test_penalty_weight_by_hand():
    """Gaps 1.2 and 0 with alpha = 2, beta = 0.5: 1 + 0.5 log(1 + e^2.4) and 1 + 0.5 log 2; whichever side is weaker."""
    text, image = torch.tensor([1.0, 0.3, -0.2]), torch.tensor([-0.2, 0.3, 1.0])
    large = 1 + 0.5 * math.log(1 + math.exp(2.4))
    weight = penalty_weight(text, image, torch.tensor(2.0), torch.tensor(0.5))
    assert weight.tolist() == pytest.approx([large, 1 + 0.5 * math.log(2), large])
    centred = penalty_weight(text, image, torch.tensor(2.0), torch.tensor(0.5), centre=True)
    assert centred.tolist() == pytest.approx([large - 0.5 * math.log(2), 1, large - 0.5 * math.log(2)])


def test_the_stop_gradient_spares_the_strong_margin():
    """dw/dM_weak = -alpha beta sigmoid(alpha D); dw/dM_strong is its opposite without the stop-gradient and nothing with it."""
    slope = 2 * 0.5 / (1 + math.exp(-2 * 1.2))
    for stop_gradient, strong_slope in ((True, 0), (False, slope)):
        text, image = torch.tensor([1.0], requires_grad=True), torch.tensor([-0.2], requires_grad=True)
        penalty_weight(text, image, torch.tensor(2.0), torch.tensor(0.5), stop_gradient).backward()
        assert image.grad.item() == pytest.approx(-slope)
        assert (0.0 if text.grad is None else text.grad.item()) == pytest.approx(strong_slope)


# --- WPCL (eq. 10)


def test_wpcl_by_hand():
    """Margins 1 and -0.2 give both users the gap 1.2 and the same w; then log(1 + w exp((s- - s+) / tau)) on the fused side."""
    rows = [math.log(1 + WEIGHT * math.exp((FUSED[u][1 - u] - FUSED[u][u]) / 0.5)) for u in (0, 1)]
    assert wpcl(*SIDES, ONE, ONE, 0.5).item() == pytest.approx(sum(rows) / 2)
    weight = WEIGHT - math.log(2)
    rows = [math.log(1 + weight * math.exp((FUSED[u][1 - u] - FUSED[u][u]) / 0.5)) for u in (0, 1)]
    assert wpcl(*SIDES, ONE, ONE, 0.5, centre=True).item() == pytest.approx(sum(rows) / 2)


def test_wpcl_of_three_by_hand():
    """Both sides alike, so that fused cosines are those of QUERY with TARGET and w = 1 + log 2 everywhere; item 7 twice."""
    w = 1 + math.log(2)
    rows = [math.log(1 + w * negatives) for negatives in (math.exp(-1), math.exp(-1) + math.exp(-0.2), math.exp(-0.36))]
    loss = wpcl(QUERY, QUERY, TARGET, TARGET, ONE, ONE, 1.0, item_ids=torch.tensor([7, 9, 7]))
    assert loss.item() == pytest.approx(sum(rows) / 3)


@pytest.mark.parametrize("masks", [{}, {"item_ids": torch.tensor([1, 2, 1, 3, 4]), "user_ids": torch.tensor([1, 2, 3, 3, 4])}])
def test_wpcl_with_beta_zero_is_info_nce(masks):
    z_text, z_image, e_text, e_image = sides()
    alpha, beta = scalars(beta=0.0)
    expected = info_nce(z_text + z_image, e_text + e_image, 0.1, **masks)
    found = wpcl(z_text, z_image, e_text, e_image, alpha, beta, 0.1, **masks)
    assert found.item() == expected.item()
    inputs = (z_text, z_image, e_text, e_image)
    for mine, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def through_weight(stop_gradient):
    """Gradient of WPCL at z_text and z_image less the one with w held constant: what flows through w alone."""
    z_text, z_image, e_text, e_image = (side.clone().requires_grad_() for side in SIDES)
    full = wpcl(z_text, z_image, e_text, e_image, ONE, ONE, 0.5, stop_gradient=stop_gradient)
    # alpha -> 0 leaves softplus(0) = ln 2 constant; this beta makes w the same number as before.
    constant = wpcl(z_text, z_image, e_text, e_image, 0 * ONE, (WEIGHT - 1) / math.log(2) * ONE, 0.5)
    assert full.item() == pytest.approx(constant.item())
    gradients = (torch.autograd.grad(loss, (z_text, z_image)) for loss in (full, constant))
    return [one - other for one, other in zip(*gradients, strict=True)]


def test_the_gradient_through_w_raises_the_weak_margin_and_with_stop_gradient_leaves_the_strong_one():
    """A step against it raises the image margins, and each by what the formula says; the text side is not moved at all."""
    text, image = through_weight(stop_gradient=True)
    assert text.abs().max() < 1e-12
    z_image = Z_IMAGE.clone().requires_grad_()
    (raises,) = torch.autograd.grad(margin(z_image, E_IMAGE).sum(), z_image)
    assert (-image * raises).sum() > 1e-3
    # dL/dM_weak of row u is -(alpha beta sigmoid(alpha D) / w) P_neg / B, P_neg = w n / (p + w n).
    for row in (0, 1):
        ratio = WEIGHT * math.exp((FUSED[row][1 - row] - FUSED[row][row]) / 0.5)
        slope = -(1 / (1 + math.exp(-1.2)) / WEIGHT) * ratio / (1 + ratio) / 2
        assert image[row].tolist() == pytest.approx((slope * raises[row]).tolist())


def test_without_stop_gradient_the_strong_margin_is_lowered():
    text, image = through_weight(stop_gradient=False)
    z_text = Z_TEXT.clone().requires_grad_()
    (raises,) = torch.autograd.grad(margin(z_text, E_TEXT).sum(), z_text)
    assert (-text * raises).sum() < -1e-3
    torch.testing.assert_close(image, through_weight(stop_gradient=True)[1])


def test_alpha_and_beta_can_only_fall():
    """The loss grows with w, and w with both: that is why they have a rate of their own (METHOD section 3)."""
    for seed in range(5):
        alpha, beta = scalars()
        wpcl(*sides(seed=seed), alpha, beta, 0.1).backward()
        assert alpha.grad > 0 and beta.grad > 0


# --- CRTR (eq. 11-13)


def test_crtr_by_hand():
    """tau_c = 0.5. Text rows of cosines [1, 0]: P = (a, 1 - a), a = 1 / (1 + e^-2). Image rows [0.6, 0.8]: b = 1 / (1 + e^0.4).

    Per row 1/2 (KL(P||Q) + KL(Q||P)) = 1/2 (a - b) (log a/b - log (1-a)/(1-b)), and the log odds are 2 and -0.4.
    """
    a, b = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(0.4))
    row = 0.5 * (a - b) * (2 + 0.4)
    assert crtr(*SIDES, 0.5).item() == pytest.approx(row)


def test_crtr_of_three_is_the_mean_of_two_divergences():
    """Against torch's own KL divergence on the cosines of QUERY with TARGET, and of the same with two targets exchanged."""
    cosines = torch.tensor([[1, 0, 0.6], [0, 1, 0.8], [0.8, 0.6, 0.96]], dtype=torch.float64)
    swap = [1, 0, 2]
    text, image = (cosines / 0.1).log_softmax(1), (cosines[:, swap] / 0.1).log_softmax(1)
    divergence = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
    kl = [divergence(image, text), divergence(text, image)]
    assert crtr(QUERY, QUERY, TARGET, TARGET[swap], 0.1).item() == pytest.approx(sum(kl).item() / 2)


def test_crtr_vanishes_only_when_both_topologies_agree():
    z_text, _, e_text, _ = sides()
    # Not the vectors but the relations have to agree: a rotation of one whole side changes nothing.
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64))[0]
    assert crtr(z_text, z_text @ rotation, e_text, 3 * e_text @ rotation, 0.1).item() == pytest.approx(0, abs=1e-12)
    assert crtr(*sides(), 0.1).item() > 0.1


# --- All of them


ITEM_IDS, USER_IDS = torch.tensor([1, 2, 1, 3, 4]), torch.tensor([1, 2, 3, 3, 4])
# Row 0 has no negative left: its item is that of rows 1 and 2, its user that of rows 3 and 4. The others have some.
LONELY = {"item_ids": torch.tensor([1, 1, 1, 2, 3]), "user_ids": torch.tensor([1, 2, 3, 1, 1])}
EVERY = {
    "info_nce": lambda zt, zi, et, ei, a, b, **masks: info_nce(zt, et, 0.3, **masks),
    "margin": lambda zt, zi, et, ei, a, b, **masks: margin(zi, ei, **masks).square().sum(),
    "penalty_weight": lambda zt, zi, et, ei, a, b, **masks: penalty_weight(
        margin(zt, et, **masks), margin(zi, ei, **masks), a, b, stop_gradient=False
    ).sum(),
    "wpcl": lambda *inputs, **masks: wpcl(*inputs, 0.3, stop_gradient=False, **masks),
    "wpcl_centred": lambda *inputs, **masks: wpcl(*inputs, 0.3, stop_gradient=False, centre=True, **masks),
    "crtr": lambda zt, zi, et, ei, a, b, **masks: crtr(zt, zi, et, ei, 0.3),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("masks", [{}, {"item_ids": ITEM_IDS, "user_ids": USER_IDS}, LONELY], ids=["plain", "masked", "lonely"])
def test_gradients_are_those_of_finite_differences(name, masks):
    """Without the stop-gradient, which finite differences cannot see."""
    inputs = (*sides(), *scalars(1.3, 0.7))
    assert gradcheck(lambda *values: EVERY[name](*values, **masks), inputs, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_users_does_not_matter(name):
    order = torch.tensor([3, 0, 4, 2, 1])
    inputs, parameters = sides(), scalars(1.3, 0.7)
    there = EVERY[name](*inputs, *parameters, item_ids=ITEM_IDS, user_ids=USER_IDS)
    back = EVERY[name](*(side[order] for side in inputs), *parameters, item_ids=ITEM_IDS[order], user_ids=USER_IDS[order])
    assert back.item() == pytest.approx(there.item(), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("wpcl")])
def test_lengths_do_not_matter_but_in_the_fused_sum(name):
    zt, zi, et, ei = sides()
    there = EVERY[name](zt, zi, et, ei, *scalars())
    assert EVERY[name](5 * zt, zi, 0.1 * et, 7 * ei, *scalars()).item() == pytest.approx(there.item(), rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_float32_inside_whatever_comes_in_and_under_autocast(name):
    """bfloat16 vectors give the float32 result of the same numbers, with autocast and without."""
    half = [side.detach().bfloat16() for side in sides()]
    parameters = scalars(1.3, 0.7, torch.float32)
    expected = EVERY[name](*(side.float() for side in half), *parameters)
    plain = EVERY[name](*half, *parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = [EVERY[name](*inputs, *parameters) for inputs in (half, [side.float() for side in half])]
    for found in (plain, *cast):
        assert found.dtype == torch.float32
        assert found.item() == expected.item()


@pytest.mark.parametrize("name", EVERY)
def test_a_user_without_negatives_adds_nothing(name):
    """All rows are of one item: no negatives anywhere. Loss and margin are 0, and so are the gradients."""
    inputs = sides()
    same = {"item_ids": torch.full((5,), 8)}
    parameters = scalars()
    found = EVERY[name](*inputs, *parameters, **same)
    if name == "crtr":
        assert found > 0  # masks nothing: own and equal targets take part
        return
    # w of five users without a gap is 1 + ln 2 each.
    assert found.item() == pytest.approx(5 * (1 + math.log(2)) if name == "penalty_weight" else 0, abs=1e-15)
    for gradient in torch.autograd.grad(found, inputs, allow_unused=True):
        assert gradient is None or (gradient == 0).all()


def test_a_batch_of_one():
    inputs, parameters = sides(batch=1), scalars()
    for found in (info_nce(inputs[0], inputs[2], 0.1), wpcl(*inputs, *parameters, 0.1), crtr(*inputs, 0.1)):
        assert found.item() == 0
        gradients = torch.autograd.grad(found, inputs, allow_unused=True)
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


COLLAPSED = {
    "random": [side.detach().float() for side in sides()],
    "opposed": [torch.eye(5), torch.eye(5), torch.eye(5), -torch.eye(5)],
    "equal": [torch.full((5, 4), 0.3)] * 4,
    "zero": [torch.zeros(5, 4)] * 4,
    "opposite": [torch.ones(5, 4), -torch.ones(5, 4), torch.ones(5, 4), torch.ones(5, 4)],
    "large": [torch.full((5, 4), 1e15)] * 4,
}


@pytest.mark.parametrize("name", COLLAPSED)
@pytest.mark.parametrize("temperature", [0.001, 1.0])
def test_collapsed_embeddings_give_finite_losses_and_gradients(name, temperature):
    inputs = [side.clone().requires_grad_() for side in COLLAPSED[name]]
    parameters = scalars(dtype=torch.float32)
    loss = wpcl(*inputs, *parameters, temperature) + crtr(*inputs, temperature) + info_nce(inputs[0], inputs[2], temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value.grad).all() for value in (*inputs, *parameters))


def test_a_zero_vector_has_cosine_zero_and_no_gradient():
    """Image cosines of user 0 are all 0, so is the margin; normalising zero would hand on a gradient of about 1e12."""
    z_image = torch.cat([torch.zeros(1, 2), Z_IMAGE[1:].float()]).requires_grad_()
    assert margin(z_image, E_IMAGE.float()).tolist() == pytest.approx([0, -0.2])
    others = [side.float() for side in (Z_TEXT, E_TEXT, E_IMAGE)]
    crtr(others[0], z_image, *others[1:], 0.1).backward()
    assert z_image.grad[0].tolist() == [0, 0]
    assert 0 < z_image.grad[1].abs().max() < 100


def test_the_lowest_temperature_is_finite_where_the_sides_contradict_each_other():
    """tau = 0.001: text puts all weight on the own target, image on the other; in the limit the KL is the gap of the logits.

    Text rows [1, 0] / 0.001, image rows [0.6, 0.8] / 0.001: 1/2 (1 - 0) (1000 + 200) up to terms of e^-200.
    """
    inputs = [side.float().requires_grad_() for side in SIDES]
    loss = crtr(*inputs, 0.001)
    assert loss.item() == pytest.approx(600, rel=1e-5)
    total = loss + wpcl(*inputs, *scalars(dtype=torch.float32), 0.001)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("loss", [
    lambda reduction: info_nce(*sides()[::2], 0.1, reduction=reduction),
    lambda reduction: wpcl(*sides(), *scalars(), 0.1, reduction=reduction),
    lambda reduction: crtr(*sides(), 0.1, reduction=reduction),
], ids=["info_nce", "wpcl", "crtr"])  # fmt: skip
def test_the_sum_is_the_mean_times_the_users_and_nothing_else_is_known(loss):
    assert loss("sum").item() == pytest.approx(5 * loss("mean").item(), rel=1e-12)
    with pytest.raises(ValueError, match="loss_reduction is 'median': choose one of mean, sum"):
        loss("median")


def test_statistics_by_hand():
    found = penalty_statistics(*SIDES, ONE, ONE, 0.5, 0.25)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "margin_text": 1,
            "margin_image": -0.2,
            "gap": 1.2,
            "w": WEIGHT,
            "share_weak_image": 1,
            "gradient_through_w": 0.5 / (1 + math.exp(-1.2)) / WEIGHT,
            "kl": crtr(*SIDES, 0.25).item(),
        }
    )


def test_statistics_count_the_weaker_side_user_by_user():
    """Text cosines [[1, 0], [0, 1]] against image sides of which only user 0's is weaker: one of two."""
    e_image = torch.tensor([[0.6, 0.8], [-1.0, 1.0]], dtype=torch.float64)
    # Image cosines: user 0: 0.6 and -1/sqrt 2 -> margin 0.6 + 0.707 = 1.307 > 1; user 1: 0.707 and 0.8 -> margin -0.093 < 1.
    found = penalty_statistics(Z_TEXT, Z_IMAGE, E_TEXT, e_image, ONE, ONE, 0.5, 0.5)
    assert found["share_weak_image"].item() == 0.5
    gaps = 0.6 + math.sqrt(0.5) - 1, 1 - (math.sqrt(0.5) - 0.8)
    assert found["gap"].item() == pytest.approx(sum(gaps) / 2)
    assert found["w"].item() == pytest.approx(1 + sum(math.log(1 + math.exp(gap)) for gap in gaps) / 2)


def test_statistics_carry_no_graph():
    assert not any(value.requires_grad for value in penalty_statistics(*sides(), *scalars(), 0.1, 0.1).values())
