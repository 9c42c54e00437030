_base_ = './fashion_mnist_32x32.py'

data_root = 'data/mnist'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
