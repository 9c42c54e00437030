upsampler = dict(type='DySample')
