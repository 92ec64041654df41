"""Losses. One of image recognition is a class and a line in LOSSES; it may be one of timm's.

The class takes the label smoothing, and `weight` (classes,) if --class_weights is to go with it. Its forward (logits
(B, classes), targets) gives the mean over the batch: targets are labels (B,) int64, or soft targets (B, classes) float32 that
mixup has smoothed already. docs/ADDING.md adds one.
"""

LOSSES = {
    "ce": "utils.losses.recognition:CrossEntropy",
    "bce": "timm.loss:BinaryCrossEntropy",  # each class on its own, mean over classes and batch (ResNet strikes back)
}
MULTILABEL_LOSSES = {  # of --task multilabel: targets are (B, classes) float32, 1 for each label that an image has
    "bce": "utils.losses.multilabel:BinaryCrossEntropy",
    "asl": "utils.losses.multilabel:Asymmetric",
}
SEGMENTATION_LOSSES = ("ce", "ce+dice", "focal", "lovasz", "masks")  # utils/losses/segmentation.py, the last one in masks.py
