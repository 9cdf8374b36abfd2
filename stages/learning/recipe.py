"""Describe how to train, in one value: everything but model and data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from stages.learning.names import ClassWeighting, Compile, Loss, Optimiser, Precision, Sampling, Schedule


@dataclass(frozen=True)
class LossOptions:
    """Constants of the losses that have some; each is read by the loss it is named after.

    Attributes
    ----------
    gce_q : of generalised cross-entropy, 0 (cross-entropy) to 1 (mean absolute error)
    sce_alpha, sce_beta : weights of cross-entropy and of reverse cross-entropy
    elr_strength, elr_memory : of early-learning regularisation: the term's weight, and the decay of the
        moving average of each sample's predictions
    forget_rate : of co-teaching: the share of each batch that is left out once training is under way,
        which should be the share of wrong labels
    focal_gamma : 0 is cross-entropy
    ldam_margin, ldam_scale : their product is the largest margin, in logits
    effective_beta : of effective-number class weights
    """

    gce_q: float = 0.7
    sce_alpha: float = 0.1
    sce_beta: float = 1.0
    elr_strength: float = 3.0
    elr_memory: float = 0.7
    forget_rate: float = 0.2
    focal_gamma: float = 2.0
    ldam_margin: float = 0.5
    ldam_scale: float = 15.0
    effective_beta: float = 0.9999


@dataclass(frozen=True)
class Recipe:
    """How to train; everything but model and data.

    Attributes
    ----------
    epochs, steps_per_epoch : the budget is their product, whatever the size of the data
    batch_size : images a step (at most as many as there are)
    learning_rate : the peak
    optimiser : adamw (Loshchilov & Hutter, arXiv 1711.05101), adam, sgd (with Nesterov's momentum),
        rmsprop, or muon for weight matrices with AdamW for the rest
    momentum : of sgd, rmsprop and muon
    schedule : one_cycle (Smith & Topin, arXiv 1708.07120), triangle, cosine, step (a tenth at 60 % and at
        80 % of the budget) or constant; see `optimisers.share_of_peak`
    warm_up : share of the budget in which the rate rises from a tenth to its peak
    weight_decay : decoupled, with every optimiser; adam with it is adamw, and as it was published with `l2`
    l1, l2 : added to the loss: `l1` times the sum of absolute weights, `l2` / 2 times that of squares
    clip_norm, clip_value : gradients are scaled to this norm at most, each entry cut to this value; None: not
    norm_bias_factor : of the rate of the biases of normalisation against all others; their decay stays
        (Page, myrtle.ai/learn/how-to-train-your-resnet; 64 in Jordan, arXiv 2404.00498)
    lookahead : after every so many steps the weights go back towards slow ones, which follow them, further
        and further as training goes on (Zhang et al., arXiv 1907.08610, with the growing share of Jordan,
        arXiv 2404.00498); the slow ones are what is left in the end. 0: none
    average_weights : decay of the moving average of the weights that is scored and kept; 0: the weights
        themselves
    loss : one of `names.LOSSES`; see `losses`
    label_smoothing : share of the target spread over all classes; with `balanced_softmax` as the
        classes share the training mass, so that it still pulls the model's own logits to even ones
    loss_options : constants of the losses
    class_weighting : of each class in the loss; see `losses.class_weighted`
    deferred : share of the budget after which class weights come in (deferred reweighting, Cao et al.,
        arXiv 1906.07413); 0: from the start
    sampling : `shuffle`, or `balanced` for classes drawn equally often
    shift : random translation by up to so many pixels, edges repeated
    flip : random horizontal flips
    alternate_flips : an image is flipped every other time, from a random start on, and not by chance each
        time (Jordan, arXiv 2404.00498, section 3.6)
    cutout : side in pixels of a square that is blanked (DeVries & Taylor, arXiv 1708.04552); 0: none
    mixup, cutmix : α of the Beta distribution that images are mixed by (Zhang et al., arXiv 1710.09412;
        Yun et al., arXiv 1905.04899); 0: none. With both, each batch gets one of them at random.
    backbone_lr_factor : of the backbone's rate against the head's; 0 freezes the backbone
    layer_decay : factor of the rate from each stage of the backbone to the one below; 1: the same for all
    frozen_stages : so many stages of the backbone, from the image on, are frozen
    coral : weight of the deep CORAL loss (Sun & Saenko, arXiv 1607.01719) between features of training and
        of unlabelled images; 0: none
    second_weight : of the second head's loss, for a model that has one
    precision : `auto` takes bf16 where the hardware computes in it
    early_stopping : keep the weights of the epoch with the best validation accuracy; with a loss or
        weights for balanced classes, balanced accuracy (the budget stays)
    compile : `on` compiles the networks with torch.compile, whose last bits differ from those of `off`; not
        in several processes
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    optimiser: Optimiser = "adamw"
    momentum: float = 0.9
    schedule: Schedule = "one_cycle"
    warm_up: float = 0.2
    weight_decay: float = 0.01
    l1: float = 0.0
    l2: float = 0.0
    clip_norm: float | None = 5.0
    clip_value: float | None = None
    norm_bias_factor: float = 1.0
    lookahead: int = 0
    average_weights: float = 0.0
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    loss_options: LossOptions = field(default_factory=LossOptions)
    class_weighting: ClassWeighting = "none"
    deferred: float = 0.0
    sampling: Sampling = "shuffle"
    shift: int = 0
    flip: bool = False
    alternate_flips: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    backbone_lr_factor: float = 1.0
    layer_decay: float = 1.0
    frozen_stages: int = 0
    coral: float = 0.0
    second_weight: float = 1.0
    precision: Precision = "auto"
    early_stopping: bool = False
    compile: Compile = "off"

    @classmethod
    def from_values(cls, values: Mapping[str, Any], **changes: Any) -> Recipe:
        """Build a recipe from values under the names of its fields.

        Parameters
        ----------
        values : may hold more, which is left out; among its `loss_options` None stands for the default
        changes : fields that are not in `values`, or that differ from it
        """
        names = {each.name for each in fields(cls)}
        chosen = {name: value for name, value in values.items() if name in names} | changes
        constants = {name: value for name, value in values["loss_options"].items() if value is not None}
        return cls(**chosen | {"loss_options": LossOptions(**constants)})


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the steps of one pass over the ingested training split.

    The ingested split, not the treated one: so a treatment that adds samples does not also buy
    itself more optimiser steps than the baseline has.
    """
    return max(1, math.ceil(samples / batch_size))
