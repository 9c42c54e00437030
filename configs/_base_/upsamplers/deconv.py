# 4 x 4 with stride 2, the size of bilinear interpolation's kernel.
upsampler = dict(type='deconv')
