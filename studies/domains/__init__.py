"""Classification of images from one to eight domains: does a network whose edge weights follow the
image gain more where images differ more?"""
