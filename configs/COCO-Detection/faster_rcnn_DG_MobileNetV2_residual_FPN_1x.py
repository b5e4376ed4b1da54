from ..common.coco_1x import dataloader, lr_multiplier, optimizer, train
from ..common.faster_rcnn_fpn import model

model.backbone.bottom_up.family = "mobilenetv2"
train.init_checkpoint = "weights/static-MobileNetV2.pth"
