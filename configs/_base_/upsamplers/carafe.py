upsampler = dict(type='CARAFE')
