# Dynamic, one filter for all channels, and a downsampling of the encoder that shares its affinity.
upsampler = dict(type='A2U', paired=True)
