upsampler = dict(type='IndexNet', variant='hin')
