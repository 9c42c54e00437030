upsampler = dict(type='SAPA', similarity='gated')
