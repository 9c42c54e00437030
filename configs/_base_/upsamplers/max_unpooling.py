upsampler = dict(type='MaxUnpooling')
