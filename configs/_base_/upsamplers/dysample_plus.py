upsampler = dict(type='DySample', dynamic_scope=True)
