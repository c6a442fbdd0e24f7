"""CLIP ViT-B/16, ELEVATER's data sets and recipe."""

_base_ = [
    '../default_runtime.py', '../backbones/clip-vit-base-p16.py', '../datasets/elevater.py',
    '../schedules/elevater_sgd_50e.py'
]
