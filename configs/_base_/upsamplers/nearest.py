upsampler = dict(type='nearest')
