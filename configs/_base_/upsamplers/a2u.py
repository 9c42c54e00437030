# Dynamic, one filter for all channels, upsampling alone: the A2U that SAPA's tables compare.
upsampler = dict(type='A2U', encoder_kernel=6)
