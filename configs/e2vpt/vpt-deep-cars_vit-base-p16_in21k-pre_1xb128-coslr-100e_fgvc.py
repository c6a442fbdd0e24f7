"""VPT-deep, ViT-B/16 supervised on ImageNet-21k, StanfordCars of FGVC with larger rates (arXiv 2203.12119).

    mmpetl fetch vit-base-in21k fgvc/StanfordCars
    mmpetl sweep configs/e2vpt/vpt-deep-cars_vit-base-p16_in21k-pre_1xb128-coslr-100e_fgvc.py --suite fgvc \
        --tasks StanfordCars

The published code searches this data set twice, by FGVC's nine rates and by four larger ones, and takes the best of
both; here the grid holds all thirteen. Elsewhere the four are `--grid lr=100,250,500,1000`.
Trainable with P prompts: 9,216 P in the method, 769 per class in the head.
Prompt lengths per data set are not published; 10 prompts here. Learning rate and weight decay are searched.
Expected top-1 in %: published 83.6. Measured: unknown.
"""

_base_ = './vpt-deep_vit-base-p16_in21k-pre_1xb128-coslr-100e_fgvc.py'
task = dict(name='StanfordCars')
data_preprocessor = dict(num_classes=196)
sweep = dict(grid={'optim_wrapper.optimizer.lr': [.1, .25, .5, 1., 2.5, 5., 10., 25., 50., 100., 250., 500., 1000.]})
