upsampler = dict(type='FADELite')
