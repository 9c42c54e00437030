upsampler = dict(type='SAPA', similarity='inner')
