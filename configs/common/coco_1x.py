"""COCO and the 1x schedule for 8 GPUs x 2 images, as Detectron2 has them, for RGB images and with a
learning rate of the routers' own."""

from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from dgnet_det.engine.optimizer import get_optimizer_params

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.use_instance_mask = False

optimizer = get_config("common/optim.py").SGD
optimizer.params = L(get_optimizer_params)(  # the tool adds the model
    base_lr="${..lr}", router_lr_factor=1.0, weight_decay_norm=0.0
)
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x

train = get_config("common/train.py").train
# A detector's checkpoint, static or not, or what tools/convert_checkpoint.py wrote: Detectron2's
# tool does not load the file of a bare backbone into a detector.
train.init_checkpoint = ""
