upsampler = dict(type='FADE')
