from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from ..common.faster_rcnn_fpn import model

model.backbone.bottom_up.update(family="regnet", name="X_600M")
train.init_checkpoint = "weights/static-RegNetX-600M.pth"
