_base_ = '../_base_/segformer_efficientnet-lite0_1xb8-800_camvid-360x480.py'
