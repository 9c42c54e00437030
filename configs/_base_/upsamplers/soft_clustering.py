upsampler = dict(type='SoftClusteringUpsampler')
