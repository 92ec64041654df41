"""Flags of other systems and what they are called here: what a wrong flag is answered with, and a table of COMING_FROM.md.

Standard library only.
"""

LAUNCHER = "accelerate launch"
# What is typed, without hyphens: flags of ours that mean it, the first that a script has; or words of the launcher.
ELSEWHERE = {
    "data data_dir data_root dataset_dir root train_dir train_data_dir path": "--data_path",
    "val_dir valid_dir validation_dir val_path eval_dir": "--eval_data_path --data_path",
    "test_dir test_path test_data": "--test_data_path",
    "dataset_name": "--dataset",
    "csv csv_file train_csv labels_csv label_file annotations_file": "--labels",
    "class_map class_names names": "--classes",
    "num_classes n_classes nc": "--nb_classes",
    "validation_split valid_size val_size test_size train_val_split": "--val_split",
    "max_train_samples": "--max_train_images",
    "max_eval_samples max_val_samples": "--max_val_images",
    "image_column_name": "--image_column",
    "label_column_name": "--label_column",
    "weights ckpt checkpoint initial_checkpoint pretrained_path load_from load_weights init_weights": "--finetune",
    "resume_from resume_from_checkpoint": "--resume",
    "model_name model_name_or_path arch architecture network": "--model",
    "encoder encoder_name": "--backbone --model",
    "img_size imgsz image_size resolution train_crop_size": "--input_size --crop_size",
    "batch train_batch_size per_device_train_batch_size": "--batch_size",
    "gradient_accumulation_steps grad_accum_steps accum_iter accumulate": "--update_freq",
    "workers j num_worker n_workers dataloader_num_workers": "--num_workers",
    "num_epochs max_epochs n_epochs num_train_epochs": "--epochs",
    "max_steps max_iters iterations total_iters": "--max_updates --epochs",
    "learning_rate base_lr lr0": "--lr",
    "wd": "--weight_decay",
    "optimizer optim": "--opt",
    "scheduler lr_scheduler lr_scheduler_type lr_policy": "--sched",
    "warmup lr_warmup_epochs": "--warmup_epochs",
    "num_warmup_steps": "--warmup_steps",
    "min_learning_rate eta_min": "--min_lr",
    "clip_grad_norm max_grad_norm gradient_clip_val grad_clip": "--clip_grad",
    "label_smoothing": "--smoothing",
    "kd_model_name kd_model teacher_model teacher_path": "--teacher",
    "distill_loss_weight kd_weight distillation_alpha": "--teacher_share",
    "mixup_alpha": "--mixup",
    "cutmix_alpha": "--cutmix",
    "auto_augment autoaugment": "--aa",
    "erasing random_erase": "--reprob",
    "fliplr": "--hflip",
    "flipud": "--vflip",
    "freeze_backbone": "--freeze",
    "early_stopping early_stopping_patience early_stop": "--patience",
    "ema use_ema": "--model_ema",
    "gradient_checkpointing": "--grad_checkpointing",
    "compile torch_compile": "--torchcompile",
    "random_state manual_seed": "--seed",
    "evaluate eval_only test_only validate do_eval": "--eval",
    "metric_for_best_model eval_metric": "--best_metric",
    "tta": "--tta_flip --eval_flip",
    "ignore_zero": "--reduce_zero_label",
    "output out save_dir work_dir log_dir logdir save_path project": "--output_dir",
    "save_period save_freq save_interval": "--save_ckpt_freq",
    "print_freq log_interval logging_steps": "--log_every",
    "wandb logger tracker": "--report_to",
    "hub_model_id": "--push_to_hub",
    "amp fp16 bf16 precision": f"{LAUNCHER} --mixed_precision bf16",
    "device gpu gpus devices n_gpu num_gpus ngpus world_size": f"{LAUNCHER} --num_processes",
    "cpu no_cuda": f"{LAUNCHER} --cpu",
    "local_rank dist_url dist_backend multiprocessing_distributed": LAUNCHER,
}


def called_here(name, flags):
    """What the flag `name`, with underscores and without hyphens before it, is called here; None where that is not known.

    flags: those of a script, such as --lr.
    """
    for names, ours in ELSEWHERE.items():
        if name in names.split():
            return ours if ours.startswith(LAUNCHER) else next((flag for flag in ours.split() if flag in flags), None)
    return None


def as_table():
    """The rows of ELSEWHERE in Markdown."""
    rows = ["| there | here |", "|---|---|"]
    for names, ours in ELSEWHERE.items():
        parts = [f"`{ours}`"] if ours.startswith(LAUNCHER) else [f"`{flag}`" for flag in ours.split()]
        rows.append(f"| {', '.join(f'`--{name}`' for name in names.split())} | {' or '.join(parts)} |")
    return "\n".join(rows)
