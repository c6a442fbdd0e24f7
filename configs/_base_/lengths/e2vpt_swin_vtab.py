"""E2VPT's prompt lengths for Swin on VTAB-1k: input prompts, key/value prompts, images per step.

Commands for four tasks are released. The others start where those agree most, and
configs/e2vpt/e2vpt-lengths_swin-base_in22k-pre_1xb80-coslr-100e_vtab.py chooses their prompts on validation images
among the lengths that the released commands try.
"""

released = dict(
    caltech101=[1, 1, 80], cifar=[10, 1, 64], patch_camelyon=[5, 1, 80], smallnorb_ele=[32, 1, 64])
chosen_by_grid = dict.fromkeys([
    'dtd', 'oxford_flowers102', 'oxford_iiit_pet', 'svhn', 'sun397', 'eurosat', 'resisc45', 'diabetic_retinopathy',
    'clevr_count', 'clevr_dist', 'dmlab', 'kitti', 'dsprites_loc', 'dsprites_ori', 'smallnorb_azi'
], [10, 1, 80])
per_task = dict(
    columns=[
        'model.backbone.petl.0.num_tokens', 'model.backbone.petl.0.num_kv_tokens', 'train_dataloader.batch_size'
    ],
    rows=dict(**released, **chosen_by_grid))
