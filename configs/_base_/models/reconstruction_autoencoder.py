# C(32)-D-C(64)-D-C(128)-D-C(256)-C(128)-U-C(64)-U-C(32)-U-C(1); a config says what D and U are.
custom_imports = dict(imports=['sapa_mm'], allow_failed_imports=False)
model = dict(type='Autoencoder')
