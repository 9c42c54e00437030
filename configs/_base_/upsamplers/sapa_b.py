upsampler = dict(type='SAPA', similarity='bilinear')
