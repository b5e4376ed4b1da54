from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from ..common.faster_rcnn_fpn import model

model.backbone.bottom_up.depth = 50
train.init_checkpoint = "weights/static-R-50.pth"
