# That of BTS: AdamW whose learning rate falls with every iteration by a power of 0.9, and weight
# decay for the encoder alone.
_base_ = '../depth_runtime.py'

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, eps=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(decay_mult=0.0))),
)
epochs = 50
param_scheduler = [
    dict(
        type='PolyLR',
        power=0.9,
        eta_min=1e-5,
        begin=0,
        end=epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=5)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1),
)
log_processor = dict(by_epoch=True)
