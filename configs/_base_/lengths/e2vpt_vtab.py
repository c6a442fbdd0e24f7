"""E2VPT's prompt lengths for ViT on VTAB-1k: input prompts, key/value prompts, as in the released list of commands.

"""

per_task = dict(
    columns=['model.backbone.petl.0.num_tokens', 'model.backbone.petl.0.num_kv_tokens'],
    rows=dict(
        cifar=[5, 5], caltech101=[32, 5], dtd=[10, 5], oxford_flowers102=[1, 1], oxford_iiit_pet=[10, 5], svhn=[10, 5],
        sun397=[10, 5], patch_camelyon=[10, 10], eurosat=[10, 5], resisc45=[10, 5], diabetic_retinopathy=[10, 5],
        clevr_count=[10, 5], clevr_dist=[10, 5], dmlab=[10, 5], kitti=[10, 5], dsprites_loc=[5, 5], dsprites_ori=[5, 5],
        smallnorb_azi=[10, 5], smallnorb_ele=[10, 5]))
