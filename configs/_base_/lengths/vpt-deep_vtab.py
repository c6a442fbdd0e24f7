"""VPT-deep's prompts for ViT on VTAB-1k, and images per step: 128 below 100 prompts, else 64, as published.

"""

per_task = dict(
    columns=['model.backbone.petl.0.num_tokens', 'train_dataloader.batch_size'],
    rows=dict(
        cifar=[10, 128], caltech101=[10, 128], dtd=[10, 128], oxford_flowers102=[1, 128], oxford_iiit_pet=[1, 128],
        svhn=[50, 128], sun397=[5, 128], patch_camelyon=[100, 64], eurosat=[100, 64], resisc45=[10, 128],
        diabetic_retinopathy=[1, 128], clevr_count=[50, 128], clevr_dist=[200, 64], dmlab=[100, 64], kitti=[50, 128],
        dsprites_loc=[10, 128], dsprites_ori=[50, 128], smallnorb_azi=[200, 64], smallnorb_ele=[200, 64]))
