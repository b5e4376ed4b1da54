"""Our reading of the paper's Table 1, which docs/paper.md puts beside the printed values."""

# By config of configs/ImageNet-Classification: parameters, and multiply-adds of the convolutions at
# 224², in millions.
TABLE_1 = {
    "DG_MobileNetV2": (3.588, 312.59),
    "DG_R_18": (11.700, 1826.41),
    "DG_R_50": (25.617, 4125.67),
    "DG_R_101": (44.887, 7837.89),
    "DG_X_50_32x4d": (25.088, 4305.50),
    "DG_RegNetX_600M": (6.221, 600.36),
    "DG_RegNetX_1600M": (9.226, 1601.94),
}
