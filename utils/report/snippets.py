"""Python code that opens the weights of a run in another program, for report.html and the model card.

Standard library only.
"""

import json
import math
import re

READING = ("value_range", "background", "in_chans")  # of config.json: images are read otherwise than Pillow's RGB


def recognition_code(where, config=None):
    """Code that prints the class of an image.

    where: of the weights, in timm's words: local-dir:FOLDER or hf-hub:USER/NAME. config: what their config.json says.
    """
    imported = "from PIL import Image, ImageOps"
    read = 'ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB")  # upright, as the camera was held'
    if _reading(config):
        imported, read = f"\n{_imports(config)}", _read(config)
    module = str((config or {}).get("module", ""))  # of this project, where timm does not have the model
    own = f"import {module}  # of Strata\n" if re.fullmatch(r"recognition_networks\.\w+", module) else ""
    return f"""{own}import timm
import torch
{imported}

model = timm.create_model({json.dumps(where)}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
image = {read}
with torch.no_grad():
    probabilities = {_logits(config)}.softmax(1)[0]
label = probabilities.argmax().item()
print(model.pretrained_cfg["label_names"][label], probabilities[label].item())
"""


def several_labels_code(where, config=None):
    """Code that prints the labels of an image of --task multilabel. Arguments as of `recognition_code`."""
    first, code = recognition_code(where, config).split("with torch.no_grad")[0].rsplit("\n\n", 1)
    kind, _, place = where.partition(":")
    opened = f"huggingface_hub.hf_hub_download({json.dumps(place)}, 'config.json')"
    if kind == "local-dir":
        opened = json.dumps(place + "/config.json")
    return f"""import json

{"import huggingface_hub" + chr(10) if kind != "local-dir" else ""}{first}

{code}config = json.load(open({opened}))
with torch.no_grad():
    probabilities = {_logits(config)}.double().sigmoid()[0].tolist()
thresholds = config.get("thresholds", [0.5] * len(probabilities))
for name, probability, threshold in zip(config["label_names"], probabilities, thresholds):
    if probability >= threshold:
        print(name, probability)
"""


def segmentation_code(folder, repo_id=None, config=None):
    """Code that prints the classes in an image. folder: with the weights, where there is no repo_id of the Hub."""
    first, where = "", json.dumps(folder)
    if repo_id:
        first, where = "import huggingface_hub\n\n", f'huggingface_hub.snapshot_download("{repo_id}")'
    return f"""{first}{_imports(config)}
from utils.result.predict_segmentation import open_segmenter

segment, classes = open_segmenter({where})
image = {_read(config)}
mask = segment(image)  # (H, W): number of each pixel's class
print([classes[number] for number in sorted({{*mask.flat}}) if number >= 0])
"""


def _logits(config):
    """The model's answer to the image, with that to its mirror image where the run was scored so."""
    if (config or {}).get("tta_flip") is True:
        return "model(torch.stack([transform(image), transform(image).flip(-1)])).mean(0, keepdim=True)"
    return "model(transform(image).unsqueeze(0))"


def _reading(config):
    """How images are read, as arguments of images.Reading; "" where plainly."""
    found = {name: config[name] for name in READING if _is_plain((config or {}).get(name))}
    return ", ".join(f"{name}={tuple(value) if isinstance(value, list) else value}" for name, value in found.items())


def _is_plain(value):
    """Whether a value of config.json is a number, or a list of some: text of somebody else's could be code."""
    values = value if isinstance(value, list) and value else [value]
    return all(type(number) in (int, float) and math.isfinite(number) for number in values)


def _imports(config):
    return f"from utils.images.read import {'Reading, ' * bool(_reading(config))}read_image  # of Strata"


def _read(config):
    name = "image.tif" if (config or {}).get("in_chans") else "image.jpg"
    return f'read_image("{name}", reading=Reading({_reading(config)}))' if _reading(config) else f'read_image("{name}")'
