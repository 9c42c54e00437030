# The IDX files as they are published, plain or .gz.
data_root = 'data/fashion_mnist'

train_dataloader = dict(
    batch_size=100,
    # The images are in memory: loading one is cheaper than passing it between processes.
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='IdxImages', data_root=data_root, split='train', size=32),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='IdxImages', data_root=data_root, split='test', size=32),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ReconstructionMetric')
test_evaluator = val_evaluator
