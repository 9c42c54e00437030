upsampler = dict(type='bilinear')
