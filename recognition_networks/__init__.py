"""Recognition models that timm does not have, registered with it: `--model` and `timm.create_model` know them by name.

A file is a paper. Importing one registers its models; utils/model/recognition.py does so for every run. A model has what timm
asks of one (`forward_features`, `forward_head`, `get_classifier`, `feature_info`), and its `checkpoint_filter_fn` converts the
published weights.
"""
