from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from ..common.faster_rcnn_fpn import model

model.backbone.bottom_up.update(
    depth=50, wiring="paper", graph_stages=["res2", "res3", "res4", "res5"]
)
train.init_checkpoint = "weights/DG-R-50.pth"
