# What the estimators of depth have in common.
custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(
    type='DepthEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        # A depth of 0 is unknown; the default of 255 would be 255 metres.
        seg_pad_val=0,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
