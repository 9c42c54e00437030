"""The PyTorch backend computes window operators by batched products, strip by strip.

A map is worked off in strips, each a few low-resolution columns wide and as many rows long as fit
the cache, of several images where these are small. Inside a strip the K x K windows of a row of
cells are K*L consecutive rows of one matrix (L = cells + K - 1), so that correlating, gathering and
scattering are one batched matrix product each, over overlapping views. No tensor of K*K*C values
per pixel of the map ever exists.
"""
