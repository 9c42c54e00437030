custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(
    type='SSN',
    # Images arrive as floating point Lab, which the model scales itself.
    data_preprocessor=dict(type='SegDataPreProcessor', pad_val=0, seg_pad_val=255),
    train_cfg=dict(num_superpixels=169, iterations=5),
    test_cfg=dict(numbers=(100, 200, 300, 400, 500, 600), iterations=10, connectivity=True),
)
