"""The objectives of VLM2Rec (arXiv 2603.17450), pure functions of tensors. Imports torch only.

For a batch of B users, z the sequence and e the target embeddings, s the cosine, and N_u the other users' targets:

    InfoNCE  (eq. 3)      -log  exp(s(z_u, e_u)/tau) / (exp(s(z_u, e_u)/tau) + sum over N_u of exp(s(z_u, e_j)/tau))
    margin   (eq. 6)      M_m = s(z_u^m, e_u^m) - mean over N_u of s(z_u^m, e_j^m),   m in {T, V}
    gap      (eq. 8)      D = stop_grad(max(M_T, M_V)) - min(M_T, M_V)
    weight   (eq. 9)      w = 1 + beta * softplus(alpha * D)
    WPCL     (eq. 10)     -log  p / (p + w * sum of negatives), on the fused z = z_T + z_V and e = e_T + e_V
    CRTR     (eq. 11-13)  1/2 (KL(P_T || P_V) + KL(P_V || P_T)), P_m = softmax over the batch of s(z_u^m, e_j^m)/tau_c

Targets with the same item id as the user's own, and targets of the same user, are no negatives. Everything is computed in
float32 at least, whatever the input's type and also under autocast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

REDUCTIONS = ("mean", "sum")


def info_nce(
    query: Tensor,
    target: Tensor,
    temperature: float,
    item_ids: Tensor | None = None,
    user_ids: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Eq. 3, scalar. `query`, `target` [B, d]; `item_ids`, `user_ids` [B]. A row without negatives has loss 0."""
    scores = _cosine_matrix(query, target)
    return _reduce(_contrast(scores, temperature, _negatives(scores, item_ids, user_ids)), reduction)


def margin(query: Tensor, target: Tensor, item_ids: Tensor | None = None, user_ids: Tensor | None = None) -> Tensor:
    """Eq. 6, [B]. A row without negatives has margin 0."""
    scores = _cosine_matrix(query, target)
    return _margin(scores, _negatives(scores, item_ids, user_ids))


def penalty_weight(
    margin_text: Tensor, margin_image: Tensor, alpha: Tensor, beta: Tensor, stop_gradient: bool = True, centre: bool = False
) -> Tensor:
    """Eq. 8 and 9, [B], not detached: its gradient raises the weaker margin.

    `centre` subtracts softplus(0) = ln 2, so that w is 1 where the gap is 0; as printed, it is 1 + beta ln 2 there.
    """
    strong, weak = torch.maximum(margin_text, margin_image), torch.minimum(margin_text, margin_image)
    gap = (strong.detach() if stop_gradient else strong) - weak
    return 1 + beta * (F.softplus(alpha * gap) - (math.log(2) if centre else 0.0))


def wpcl(
    z_text: Tensor,
    z_image: Tensor,
    e_text: Tensor,
    e_image: Tensor,
    alpha: Tensor,
    beta: Tensor,
    temperature: float,
    item_ids: Tensor | None = None,
    user_ids: Tensor | None = None,
    stop_gradient: bool = True,
    centre: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Eq. 10, scalar. Embeddings [B, d], `alpha` and `beta` scalars; with beta = 0 it is `info_nce` of the fused embeddings."""
    fused = _cosine_matrix(_upcast(z_text) + _upcast(z_image), _upcast(e_text) + _upcast(e_image))
    negatives = _negatives(fused, item_ids, user_ids)
    margins = (_margin(_cosine_matrix(z, e), negatives) for z, e in ((z_text, e_text), (z_image, e_image)))
    weight = penalty_weight(*margins, alpha, beta, stop_gradient, centre)
    return _reduce(_contrast(fused, temperature, negatives, weight), reduction)


def crtr(z_text: Tensor, z_image: Tensor, e_text: Tensor, e_image: Tensor, temperature: float, reduction: str = "mean") -> Tensor:
    """Eq. 11-13, scalar. Embeddings [B, d]. The own target takes part, nothing is masked, gradients reach both sides."""
    log_text = F.log_softmax(_cosine_matrix(z_text, e_text) / temperature, dim=1)
    log_image = F.log_softmax(_cosine_matrix(z_image, e_image) / temperature, dim=1)
    # KL(P||Q) + KL(Q||P) = sum of (P - Q)(log P - log Q); finite, since log_softmax is.
    return _reduce(0.5 * ((log_text.exp() - log_image.exp()) * (log_text - log_image)).sum(dim=1), reduction)


@torch.no_grad()
def penalty_statistics(
    z_text: Tensor,
    z_image: Tensor,
    e_text: Tensor,
    e_image: Tensor,
    alpha: Tensor,
    beta: Tensor,
    tau_wpcl: float,
    tau_crtr: float,
    item_ids: Tensor | None = None,
    user_ids: Tensor | None = None,
    centre: bool = False,
) -> dict[str, Tensor]:
    """What explains a step, means over the batch: margins, gap, w, and the share of users whose weaker side is the image.

    `gradient_through_w`: size of the gradient that reaches a similarity through w, relative to the one through the positive,
    tau * alpha * beta * sigmoid(alpha D) / w. `kl`: CRTR's value; it vanishes with the margins when both softmaxes turn uniform.
    """
    text, image = _cosine_matrix(z_text, e_text), _cosine_matrix(z_image, e_image)
    negatives = _negatives(text, item_ids, user_ids)
    margin_text, margin_image = _margin(text, negatives), _margin(image, negatives)
    gap = (margin_text - margin_image).abs()
    weight = penalty_weight(margin_text, margin_image, alpha, beta, centre=centre)
    return {
        "margin_text": margin_text.mean(),
        "margin_image": margin_image.mean(),
        "gap": gap.mean(),
        "w": weight.mean(),
        "share_weak_image": (margin_image < margin_text).float().mean(),
        "gradient_through_w": (tau_wpcl * alpha * beta * torch.sigmoid(alpha * gap) / weight).mean(),
        "kl": crtr(z_text, z_image, e_text, e_image, tau_crtr),
    }


def _upcast(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _cosine_matrix(query: Tensor, target: Tensor) -> Tensor:
    """s(query_i, target_j), [B, B]; a zero vector has cosine 0 with everything."""
    with torch.autocast(query.device.type, enabled=False):
        return _unit(query) @ _unit(target).T


def _unit(vectors: Tensor) -> Tensor:
    vectors = _upcast(vectors)
    # The cosine has no gradient at zero: none is better than normalize's, which is divided by its epsilon of 1e-12.
    return F.normalize(vectors.masked_fill((vectors == 0).all(dim=1, keepdim=True), 0), dim=1)


def _negatives(scores: Tensor, item_ids: Tensor | None, user_ids: Tensor | None) -> Tensor:
    """[B, B] bool: which targets are a row's negatives."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    for ids in (item_ids, user_ids):
        if ids is not None:
            own = own | (ids[:, None] == ids[None, :])
    return ~own


def _margin(scores: Tensor, negatives: Tensor) -> Tensor:
    count = negatives.sum(dim=1)
    mean = torch.where(negatives, scores, 0).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, scores.diagonal() - mean, 0)


def _contrast(scores: Tensor, temperature: float, negatives: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log(p / (p + w * sum of negatives)) of each row as logsumexp over {p, log w + negatives} - p, [B]."""
    logits = scores / temperature
    positive = logits.diagonal()
    rest = logits if weight is None else logits + weight.log()[:, None]
    rest = rest.masked_fill(~negatives, -math.inf)
    return torch.logsumexp(torch.cat([positive[:, None], rest], dim=1), dim=1) - positive


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"loss_reduction is {reduction!r}: choose one of {', '.join(REDUCTIONS)}")
    return losses.mean() if reduction == "mean" else losses.sum()
