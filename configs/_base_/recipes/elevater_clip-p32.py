"""CLIP ViT-B/32, ELEVATER's data sets and recipe."""

_base_ = [
    '../default_runtime.py', '../backbones/clip-vit-base-p32.py', '../datasets/elevater.py',
    '../schedules/elevater_sgd_50e.py'
]
